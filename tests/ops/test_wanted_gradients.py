"""The ops of the contrastive losses: a gradient asked for alone is that among all, in its dtype."""

import pytest
import torch
from contrastive_problem import CRITICS, Problem

from mim4dd.reference import Kind, Reduce

OPS = torch.ops.mim4dd
LENGTHS = {"query": 2, "key": 2, "logit_scale": 1, "bias": 1}  # of two layers


def derivatives(critic, dtype):
    """By op, a function from flags of the wanted gradients to their list; the names of all."""
    problem = Problem(critic, critic.kind == Kind.NCE, True, 1, "cpu", num_excluded=2)
    wide = torch.promote_types(dtype, torch.float32)
    query, key = ([side.detach().to(dtype) for side in x] for x in (problem.query, problem.key))
    *labels, scale, bias = problem.shared
    numbers = [scale.detach().to(wide), None if bias is None else bias.detach().to(wide)]
    pairs = (query, key, *labels, *numbers, *critic)
    lse, weight = OPS.contrastive(*pairs, Reduce.NONE, [False] * 4)[3:5]
    upstream = [each.detach().to(wide) for each in problem.upstream]
    saved = (*pairs, lse, weight, *upstream)
    # 1 is what a kernel may take for nothing to multiply by.
    ones = torch.ones(2, dtype=wide)
    tangents = [[torch.randn_like(x) for x in side] for side in (query, key)]
    return {
        "contrastive": lambda wanted: OPS.contrastive(*pairs, Reduce.NONE, wanted)[-1],
        "contrastive_bwd": lambda wanted: OPS.contrastive_bwd(*saved, wanted),
        "contrastive_bwd_bwd": lambda wanted: OPS.contrastive_bwd_bwd(
            *saved, *tangents, ones, 0.5 * ones, wanted
        )[2],
    }, [name for name in LENGTHS if name != "bias" or bias is not None]


def by_name(op, wanted):
    found = op([name in wanted for name in LENGTHS])
    assert len(found) == sum(LENGTHS[name] for name in wanted)
    rest = iter(found)
    return {name: [next(rest) for _ in range(LENGTHS[name])] for name in wanted}


@pytest.mark.parametrize("critic", CRITICS, ids=lambda c: f"{c.kind.name}-{c.decoupled}")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_alone_is_that_among_all(critic, dtype):
    ops, names = derivatives(critic, dtype)
    for op, derive in ops.items():
        every = by_name(derive, names)
        for name in names:
            torch.testing.assert_close(by_name(derive, [name])[name], every[name])
        # What is formed along with the losses is rounded by who multiplies it.
        rounded = torch.promote_types(dtype, torch.float32) if op == "contrastive" else dtype
        assert {each.dtype for name in ("query", "key") for each in every[name]} == {rounded}
