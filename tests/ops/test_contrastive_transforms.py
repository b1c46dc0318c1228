"""torch.func, forward mode and torch.compile over the contrastive functions: right or refused."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap

from mim4dd import (
    InfoNCELoss,
    LearnedTemperature,
    MIM4DDLoss,
    clip_loss,
    info_nce,
    nce,
    reference,
    sup_con,
)
from mim4dd.ops.contrastive import contrastive


def labelled(n=6, m=9, classes=3):
    key_labels = torch.arange(m) % classes
    return torch.randint(classes, (n,)), key_labels


def cases():
    """Losses of a query, by name."""
    key = torch.randn(9, 4, dtype=torch.float64)
    labels, key_labels = labelled()

    def of(function, *arguments, **options):
        def loss(query, backend=None):
            return function(query, *arguments, backend=backend, temperature=0.7, **options)

        return loss

    return {
        "info_nce": of(info_nce, key),
        "normalized": of(info_nce, key, normalize=True),
        "by label": of(sup_con, key, labels, key_labels, hardness=0.3),
        "in": of(sup_con, key, labels, key_labels, variant="in"),
        "nce": of(nce, key, labels, key_labels, bias=0.2),
        "excluding": of(sup_con, key, labels, key_labels, exclude_index=torch.randint(9, (6, 2))),
        "clip_loss": of(clip_loss, key[:6], normalize=True),
    }


NAMES = list(cases())


@pytest.fixture(params=NAMES)
def loss(request):
    return cases()[request.param]


def by_reference(loss):
    return lambda query: loss(query, backend="reference")


def test_reverse_mode(loss):
    query = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(grad(loss)(query), grad(by_reference(loss))(query))
    pulled = [
        vjp(each, query)[1](torch.tensor(2.0).double()) for each in (loss, by_reference(loss))
    ]
    torch.testing.assert_close(*pulled)


def test_forward_mode(loss):
    query, tangent = torch.randn(2, 6, 4, dtype=torch.float64)
    actual, expected = (jvp(each, (query,), (tangent,)) for each in (loss, by_reference(loss)))
    torch.testing.assert_close(actual, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = loss(torch.autograd.forward_ad.make_dual(query, tangent))
        along = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(along, expected[1])


def test_forward_over_reverse_and_reverse_over_reverse(loss):
    query = torch.randn(6, 4, dtype=torch.float64)
    expected = hessian(by_reference(loss))(query)
    torch.testing.assert_close(hessian(loss)(query), expected)
    torch.testing.assert_close(jacrev(jacrev(loss))(query), expected)


def test_vmap(loss):
    queries = torch.randn(5, 6, 4, dtype=torch.float64)
    expected = torch.stack([by_reference(loss)(query) for query in queries])
    torch.testing.assert_close(vmap(loss)(queries), expected)
    expected = torch.stack([grad(by_reference(loss))(query) for query in queries])
    torch.testing.assert_close(vmap(grad(loss))(queries), expected)
    moved = queries.movedim(0, 2)
    torch.testing.assert_close(vmap(grad(loss), in_dims=2)(moved), expected)


def test_a_learned_temperature_under_a_transform():
    query, key = torch.randn(6, 4), torch.randn(9, 4)
    temperature = torch.tensor(0.5)

    def loss(temperature, backend=None):
        return info_nce(query, key, temperature=temperature, backend=backend)

    expected = [
        transform(lambda t: loss(t, "reference"))(temperature) for transform in (grad, hessian)
    ]
    torch.testing.assert_close(grad(loss)(temperature), expected[0])
    torch.testing.assert_close(hessian(loss)(temperature), expected[1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_graph_break(name, dynamic, device):
    torch.compiler.reset()
    loss = cases()[name]
    query = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    actual, expected = compiled(query), loss(query)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, query), torch.autograd.grad(expected, query)
    )


def test_compiled_forward_mode(loss):
    query, tangent = torch.randn(2, 6, 4, dtype=torch.float64)

    def along(query, backend=None):
        return jvp(lambda q: loss(q, backend), (query,), (tangent,))[1]

    torch.compiler.reset()
    compiled = torch.compile(along, backend="aot_eager")
    torch.testing.assert_close(compiled(query), along(query, "reference"))


def test_compiled_by_inductor():
    """Values that the host may not look at, layers, masks and a learned temperature."""
    labels, key_labels = labelled()

    def loss(query, key, temperature, index, mask):
        layers = sup_con(
            [query, query[:, :2]],
            [key, key[:, :2]],
            labels,
            key_labels,
            key_mask=mask,
            temperature=temperature,
            normalize=True,
            reduction="none",
        )
        return layers.square().sum() + info_nce(query, key, positive_index=index)

    leaves = [torch.randn(6, 4), torch.randn(9, 4), torch.tensor(0.4)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    index, mask = torch.randint(9, (6,)), torch.arange(9) != 4
    results = []
    for each in (torch.compile(loss, fullgraph=True), loss):
        value = each(*leaves, index, mask)
        results.append([value, *torch.autograd.grad(value, leaves)])
    torch.testing.assert_close(*results)


def test_compiled_bad_values_are_not_missed():
    query, key = torch.randn(6, 4), torch.randn(9, 4)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(index, temperature):
        return info_nce(query, key, positive_index=index, temperature=temperature)

    index = torch.arange(6)
    assert loss(index, torch.tensor(0.5)).isfinite()
    assert loss(index, torch.tensor(-0.5)).isnan()
    with pytest.raises(RuntimeError, match=r"positive_index must lie in \[0, M\)"):
        loss(index + 9, torch.tensor(0.5))


def test_compiled_means_need_three_products_too():
    """The gradient of a mean uses what was formed along with the loss, compiled as not."""
    query, key = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    with torch.profiler.profile() as profile:
        torch.compile(info_nce, fullgraph=True, backend="aot_eager")(query, key).backward()
    calls = [event.key for event in profile.key_averages() if "contrastive" in event.key]
    assert "mim4dd::contrastive" in calls
    assert "mim4dd::contrastive_bwd" not in calls


def test_a_compiled_module_keeps_no_traces():
    loss = InfoNCELoss(LearnedTemperature(0.5))
    query, key = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    expected = loss(query, key), loss.loss_per_query, loss.mi_lower_bound
    torch.compiler.reset()
    value = torch.compile(loss, fullgraph=True, backend="aot_eager")(query, key)
    value.backward()
    actual = value, loss.loss_per_query, loss.mi_lower_bound
    torch.testing.assert_close(actual, expected)
    assert type(loss.loss_per_query) is torch.Tensor
    copy.deepcopy(loss)


def test_schedules_compile_twice():
    """Once for the first value, once for any."""
    labels, key_labels = labelled()
    query, key = torch.randn(6, 4), torch.randn(9, 4)
    module = MIM4DDLoss()

    def step(schedule):
        loss = info_nce(query, key, temperature=schedule)
        loss = loss + nce(query, key, labels, key_labels, logit_scale=schedule, bias=schedule)
        return loss + module([query, query], [key, key], labels, key_labels)

    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, backend=counter)
    for number in range(20):
        schedule = 0.1 + 0.9 * math.cos(number / 20)
        module.critic.temperature, module.layer_decay = schedule, schedule / 2
        torch.testing.assert_close(compiled(schedule), step(schedule))
    assert counter.frame_count == 2


def test_autocast_changes_nothing():
    query, key = torch.randn(2, 6, 4).unbind()
    query.requires_grad_()
    scale = torch.tensor(3.0)
    with torch.autocast("cpu", torch.bfloat16):
        actual = contrastive(
            [query],
            [key],
            torch.arange(6),
            None,
            None,
            scale,
            None,
            reference.Critic(),
            uniform=False,
        )
        gradient = torch.autograd.grad(actual.loss.sum(), query)
    expected = F.cross_entropy(scale * query @ key.T, torch.arange(6), reduction="none")
    torch.testing.assert_close(actual.loss[0], expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), query))
