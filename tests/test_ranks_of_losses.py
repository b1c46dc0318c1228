"""Losses over ranks: what one process makes of the concatenated batch."""

import pytest
import torch
import torch.distributed as dist
from on_ranks import on_ranks

from mim4dd import Ranks, info_nce, log_sum_exp, sup_con

ROWS = {1: [(5, 7)], 2: [(4, 6), (3, 5)], 3: [(2, 6), (5, 5), (0, 3)], 4: [(3, 3), (1, 4), (6, 6), (2, 0)]}


def close(actual, expected, scale=1e-12):
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(
        torch.as_tensor(actual), expected, rtol=scale, atol=scale * float(expected.abs().max())
    )


def batch(world):
    """Query, key, labels and key labels of all ranks, and where they are cut."""
    generator = torch.Generator().manual_seed(world)
    queries, keys = ([rows[side] for rows in ROWS[world]] for side in (0, 1))
    query, key = (
        torch.randn(sum(count), 5, generator=generator, dtype=torch.float64)
        for count in (queries, keys)
    )
    labels, key_labels = (
        torch.randint(-1, 3, (sum(count),), generator=generator) for count in (queries, keys)
    )
    return (query, key, labels, key_labels), (queries, keys)


def first_keys(counts):
    return [sum(counts[:rank]) for rank in range(len(counts))]


CASES = {
    "sup_con": lambda q, k, y, z, own, **o: sup_con(q, k, y, z, **o),
    "sup_con in": lambda q, k, y, z, own, **o: sup_con(q, k, y, z, variant="in", **o),
    "self": lambda q, k, y, z, own, **o: sup_con(q, k, y, z, self_index=own, hardness=0.5, **o),
    "info_nce": lambda q, k, y, z, own, **o: info_nce(q, k, positive_index=own, **o),
    "normalized": lambda q, k, y, z, own, **o: info_nce(
        q, k, positive_index=own, normalize=True, exclude_index=(own[:, None] + 1) % 3, **o
    ),
    "masked": lambda q, k, y, z, own, **o: info_nce(q, k, positive_index=own, key_mask=z >= 0, **o),
    "log_sum_exp": lambda q, k, y, z, own, reduction, **o: log_sum_exp(q, k, **o),
}
REDUCTIONS = "mean", "none"


def of_rank(rank, world, exchange):
    """By case and reduction: loss, and gradients of query, key and temperature."""
    everything, cuts = batch(world)
    counts = [cuts[side] for side in (0, 1, 0, 1)]
    own = own_index(*cuts).split(cuts[0])[rank]
    parts = [each.split(count)[rank] for each, count in zip(everything, counts, strict=True)]
    group = Ranks(dist.group.WORLD, "sum", exchange)
    return [
        found(case, *parts, own, reduction, group=group) for case in CASES for reduction in REDUCTIONS
    ]


def found(case, query, key, labels, key_labels, own, reduction, **options):
    query, key, temperature = leaves = [
        each.clone().requires_grad_()
        for each in (query, key, torch.tensor(0.3, dtype=torch.float64))
    ]
    options |= {"temperature": temperature, "reduction": reduction}
    loss = CASES[case](query, key, labels, key_labels, own, **options)
    return [loss, *torch.autograd.grad(loss.sum(), leaves)]


def own_index(queries, keys):
    """The query's own row on its own rank, or -1 where there is none."""
    return torch.cat(
        [
            torch.where(torch.arange(n) < m, torch.arange(n) + first, -1)
            for n, m, first in zip(queries, keys, first_keys(keys), strict=True)
        ]
    )


@pytest.mark.parametrize("exchange", ["ring", "gather"])
@pytest.mark.parametrize("world", ROWS)
def test_equal_one_process(world, exchange, tmp_path):
    by_rank = on_ranks(world, of_rank, tmp_path, world, exchange)
    everything, cuts = batch(world)
    tried = [(case, reduction) for case in CASES for reduction in REDUCTIONS]
    for (case, reduction), *results in zip(tried, *by_rank, strict=True):
        expected = found(case, *everything, own_index(*cuts), reduction)
        loss, of_query, of_key, of_temperature = zip(*results, strict=True)
        if loss[0].ndim == 0:
            for each in loss:
                close(each, expected[0])
        else:
            close(joined(loss), expected[0])
        close(joined(of_query), expected[1])
        close(joined(of_key), expected[2])
        close(sum(of_temperature), expected[3])


def joined(parts):
    return torch.cat([torch.as_tensor(part) for part in parts])
