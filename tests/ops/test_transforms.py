"""Every public op and module under PyTorch's transforms: right values, or one clear sentence."""

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import functional
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import mim4dd
from mim4dd import reference

DOUBLE = torch.float64


def random(*shape):
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(7))


KEY, NEGATIVES = random(6, 3), random(5, 3) + 1
LABELS, KEY_LABELS = torch.tensor([0, 1, 2, 1]), torch.arange(6) % 3
BY_LABEL = {"labels": LABELS, "key_labels": KEY_LABELS}
QUEUE = mim4dd.KeyQueue(5, 3).double()
QUEUE.push(NEGATIVES)


class Case(NamedTuple):
    """A scalar of x, by the op where ``backend`` is None and by definition where it is not."""

    value: Callable[[Any, Any], Any]
    kind: str = "contrastive"
    module: nn.Module | None = None


def sgd_step(x, backend):
    theta, lr = x.flatten(), torch.tensor(0.1, dtype=DOUBLE)
    options = {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True, "backend": backend}
    parts = mim4dd.sgd_step(theta, theta.sin(), lr, velocity=theta.cos(), **options)
    return sum(part.square().sum() for part in parts)


def norm_relu_pool(x, backend):
    maps, numbers = x.view(1, 2, 2, 3), KEY.flatten().abs()
    arguments = maps, numbers[:2], numbers[2:4]
    return mim4dd.norm_relu_pool(*arguments, num_groups=1, backend=backend).square().sum()


MODEL = nn.Linear(3, 3, dtype=DOUBLE)
THETA = mim4dd.flatten_parameters(MODEL)
BATCHES = torch.arange(4).view(2, 2)


def call(theta, images):
    return (images @ theta[:9].view(3, 3).T + theta[9:]).tanh()


class Tanh(nn.Sequential):
    def __init__(self):
        super().__init__(MODEL, nn.Tanh())


def unroll_sgd(x, backend):
    lr = torch.tensor(0.1, dtype=DOUBLE)
    if backend is None:
        theta = mim4dd.unroll_sgd(Tanh(), THETA, x, LABELS, BATCHES, lr=lr)
    else:
        start = THETA.clone().requires_grad_()
        theta = reference.unroll_sgd(call, start, x, LABELS, BATCHES, lr)
    return theta.square().sum()


def unroll_adam(x, backend):
    lr = torch.tensor(0.1, dtype=DOUBLE)
    if backend is None:
        options = {"lr": lr, "eps_root": 1e-3}
        return mim4dd.unroll_adam(Tanh(), THETA, x, LABELS, BATCHES, **options).square().sum()
    theta, moments = THETA.clone().requires_grad_(), [torch.zeros_like(THETA)] * 2
    for step, rows in enumerate(BATCHES):
        value = F.cross_entropy(call(theta, x[rows]), LABELS[rows])
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        theta, *moments = reference.adam_step(
            theta, gradient, *moments, lr, step + 1, eps_root=1e-3
        )
    return theta.square().sum()


def of_module(module, forward, definition, kind="contrastive"):
    return Case(
        lambda x, backend: forward(module, x) if backend is None else definition(x), kind, module
    )


def defined(function, *arguments, **options):
    return lambda x: function(x, *arguments, temperature=0.7, backend="reference", **options)


def functions():
    learned = mim4dd.LearnedTemperature(0.7, dtype=DOUBLE)
    by_label = KEY, LABELS, KEY_LABELS

    def info_nce(x, backend, *, key=KEY, **options):
        return mim4dd.info_nce(x, key, temperature=0.7, backend=backend, **options)

    def layers(x, backend):
        sides = [x, x[:, :2]], [KEY, KEY[:, :2]]
        return mim4dd.info_nce(*sides, temperature=0.7, backend=backend).prod()

    def of_temperature(x, backend):
        temperature = x.square().mean().view(1)
        return mim4dd.info_nce(KEY[:4], KEY, temperature=temperature, backend=backend)

    def bound(x, backend):
        loss = info_nce(x, backend, **BY_LABEL, reduction="none")
        return mim4dd.mi_lower_bound(loss, LABELS, KEY_LABELS)

    def queue(x, backend):
        return info_nce(x, backend, key=KEY[:4], negative_keys=QUEUE.keys)

    def clip(**options):
        return Case(
            lambda x, b: mim4dd.clip_loss(x, KEY[:4], temperature=0.7, backend=b, **options)
        )

    return {
        "info_nce": Case(info_nce),
        "info_nce, none": Case(lambda x, b: info_nce(x, b, reduction="none").square().sum()),
        "info_nce, keys are queries": Case(lambda x, b: info_nce(x, b, key=x, normalize=True)),
        "info_nce, layers": Case(layers),
        "info_nce, queue": Case(queue),
        "info_nce, temperature": Case(of_temperature),
        "sup_con": Case(
            lambda x, b: mim4dd.sup_con(x, *by_label, hardness=0.3, normalize=True, backend=b)
        ),
        "nce": Case(lambda x, b: mim4dd.nce(x, *by_label, bias=0.2, temperature=0.7, backend=b)),
        "log_sum_exp": Case(lambda x, b: mim4dd.log_sum_exp(x, KEY, backend=b).square().sum()),
        "clip_loss": clip(),
        "clip_loss, normalize": clip(normalize=True),
        "clip_loss, labels": clip(labels=LABELS),
        "mi_lower_bound": Case(bound),
        "norm_relu_pool": Case(norm_relu_pool, "norm_relu_pool"),
        "trajectory_loss": Case(
            lambda x, b: mim4dd.trajectory_loss(x, 0.1 * x.sin(), KEY[:4], backend=b).sum(), "plain"
        ),
        "sgd_step": Case(sgd_step, "plain"),
        "unroll_sgd": Case(unroll_sgd, "unroll"),
        "unroll_adam": Case(unroll_adam, "unroll"),
        "InfoNCELoss": of_module(
            mim4dd.InfoNCELoss(learned), lambda m, x: m(x, KEY), defined(mim4dd.info_nce, KEY)
        ),
        "SupConLoss": of_module(
            mim4dd.SupConLoss(0.7), lambda m, x: m(x, *by_label), defined(mim4dd.sup_con, *by_label)
        ),
        "NCELoss": of_module(
            mim4dd.NCELoss(0.7), lambda m, x: m(x, *by_label), defined(mim4dd.nce, *by_label)
        ),
        "MIM4DDLoss": of_module(
            mim4dd.MIM4DDLoss(0.7),
            lambda m, x: m([x], [KEY], LABELS, KEY_LABELS),
            defined(mim4dd.sup_con, *by_label, normalize=True),
        ),
        "NormReLUPool2d": of_module(
            mim4dd.NormReLUPool2d(1, 2).double(),
            lambda m, x: m(x.view(1, 2, 2, 3)).square().sum(),
            lambda x: (
                reference.norm_relu_pool(x.view(1, 2, 2, 3), None, None, 1, 2, 1e-5).square().sum()
            ),
            "norm_relu_pool",
        ),
        "PositiveStepSize": of_module(
            mim4dd.PositiveStepSize(0.1, dtype=DOUBLE),
            lambda m, x: (m() * x.sin()).sum(),
            lambda x: (0.1 * x.sin()).sum(),
            "plain",
        ),
    }


CASES = functions()
FACTORS = torch.tensor([1.0, 2.0, -3.0], dtype=DOUBLE)
TANGENT = random(4, 3) - 1


def leaf(x):
    return x.detach().clone().requires_grad_()


def gradient(f, x, **options):
    x = leaf(x)
    return torch.autograd.grad(f(x), x, **options)[0]


def second(f, x):
    x = leaf(x)
    (first,) = torch.autograd.grad(f(x), x, create_graph=True)
    return torch.autograd.grad(first.square().sum(), x)[0]


def checkpointed(use_reentrant):
    return lambda f: lambda x: checkpoint(f, x, use_reentrant=use_reentrant)


def reentrant(f, x):
    x = leaf(x)
    checkpointed(True)(f)(x).backward()  # it has no autograd.grad
    return x.grad


def under(hooks):
    def run(f, x):
        with hooks():
            x = leaf(x)
            value = f(x)
        return torch.autograd.grad(value, x)[0]

    return run


def copying():
    return torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor)


def three_times(f, x):
    x = leaf(x)
    value = checkpoint(f, x, use_reentrant=False)
    first, again = (torch.autograd.grad(value, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first, torch.autograd.grad(value, x)[0])
    return first


def batched(**options):
    def run(f, x):
        x = leaf(x)
        return torch.autograd.grad(f(x), x, FACTORS, is_grads_batched=True, **options)[0]

    return run


def vmap_of_autograd(f, x):
    x = leaf(x)
    value = f(x)
    return vmap(lambda v: torch.autograd.grad(value, x, v, retain_graph=True)[0])(FACTORS)


def many(x):
    return torch.stack([x, x + 0.1, x - 0.1, 2 * x])


def for_each(of_one):
    return lambda f, x: torch.stack([of_one(f, each) for each in many(x)])


def two(f):
    return lambda x: torch.stack([f(x), 2 * f(x)])


def along(f, x):
    return (functional.jacobian(f, x) * TANGENT).sum()


def curvature(f, x):
    return (functional.hessian(f, x) * TANGENT).sum((2, 3))


def plain_batch(f, x):
    return FACTORS[:, None, None] * gradient(f, x)


def jacobian(f, x):
    return functional.jacobian(f, x)


VECTORIZED = {"vectorize": True}
# What is done, and the same by other means, for the definition.
TRANSFORMS = {
    "checkpoint": (lambda f, x: gradient(checkpointed(False)(f), x), gradient),
    "checkpoint, reentrant": (reentrant, gradient),
    "checkpoint, second order": (lambda f, x: second(checkpointed(False)(f), x), second),
    "checkpoint, three times": (three_times, gradient),
    "saved tensors hooks": (under(copying), gradient),
    "save_on_cpu": (under(torch.autograd.graph.save_on_cpu), gradient),
    "batched gradients": (batched(), plain_batch),
    "batched gradients, create_graph": (batched(create_graph=True), plain_batch),
    "vmap of autograd.grad": (vmap_of_autograd, plain_batch),
    "jacobian": (
        lambda f, x: functional.jacobian(two(f), x, **VECTORIZED),
        lambda f, x: jacobian(two(f), x),
    ),
    "jacobian, forward": (
        lambda f, x: functional.jacobian(f, x, **VECTORIZED, strategy="forward-mode"),
        jacobian,
    ),
    "hessian": (lambda f, x: functional.hessian(f, x, **VECTORIZED), functional.hessian),
    "hessian, forward": (
        lambda f, x: functional.hessian(f, x, **VECTORIZED, outer_jacobian_strategy="forward-mode"),
        functional.hessian,
    ),
    "vhp": (lambda f, x: functional.vhp(f, x, TANGENT)[1], curvature),
    "hvp": (lambda f, x: functional.hvp(f, x, TANGENT)[1], curvature),
    "grad": (lambda f, x: grad(f)(x), gradient),
    "vjp": (lambda f, x: vjp(f, x)[1](FACTORS[1])[0], lambda f, x: 2 * gradient(f, x)),
    "jvp": (lambda f, x: jvp(f, (x,), (TANGENT,))[1], along),
    "jacrev": (lambda f, x: jacrev(two(f))(x), lambda f, x: jacobian(two(f), x)),
    "jacfwd": (lambda f, x: jacfwd(f)(x), jacobian),
    "jacfwd of jacrev": (lambda f, x: hessian(f)(x), functional.hessian),
    "jacrev of jacrev": (lambda f, x: jacrev(jacrev(f))(x), functional.hessian),
    "jacrev of jacfwd": (lambda f, x: jacrev(jacfwd(f))(x), functional.hessian),
    "jacfwd of jacfwd": (lambda f, x: jacfwd(jacfwd(f))(x), functional.hessian),
    "vmap": (lambda f, x: vmap(f)(many(x)), for_each(lambda f, x: f(x))),
    "vmap of grad": (lambda f, x: vmap(grad(f))(many(x)), for_each(gradient)),
    "vmap of hessian": (lambda f, x: vmap(hessian(f))(many(x)), for_each(functional.hessian)),
    "grad of vmap": (lambda f, x: grad(lambda xs: vmap(f)(xs).sum())(many(x)), for_each(gradient)),
    "autograd of vmap": (
        lambda f, x: gradient(lambda xs: vmap(f)(xs).sum(), many(x)),
        for_each(gradient),
    ),
    "vmap of vmap": (
        lambda f, x: vmap(vmap(f))(many(x).unflatten(0, (2, 2))).flatten(),
        for_each(lambda f, x: f(x)),
    ),
}
UNDER_VMAP = {
    *("vmap", "vmap of grad", "vmap of hessian", "grad of vmap", "autograd of vmap"),
    "vmap of vmap",
}
FORWARD = {
    *("jacobian, forward", "hessian, forward", "jvp", "jacfwd", "jacfwd of jacrev"),
    *("jacrev of jacfwd", "jacfwd of jacfwd", "vmap of hessian"),
}
FUNC = FORWARD | UNDER_VMAP | {"grad", "vjp", "jacrev", "jacrev of jacrev"}
ONE_AT_A_TIME = ("batched gradients", "batched gradients, create_graph", "vmap of autograd.grad")
SECOND = ("checkpoint, second order", "hessian", "vhp", "hvp")
REFUSED = {
    "contrastive": {
        "hvp": "two derivatives, and a third",
        "jacfwd of jacfwd": "no forward mode over forward mode: take forward over reverse",
    },
    "norm_relu_pool": dict.fromkeys(FORWARD, "norm_relu_pool has no forward-mode derivative")
    | {"hvp": "norm_relu_pool has two derivatives, and a third"},
    "unroll": dict.fromkeys(FUNC, "the unroll does not support torch.func, torch.vmap and forward")
    | dict.fromkeys((*ONE_AT_A_TIME, "jacobian"), "the unroll computes one gradient at a")
    | dict.fromkeys(SECOND, "the unroll is differentiable once"),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CASES)
def test_every_op_under_every_transform(name, transform):
    case = CASES[name]
    run, by_other_means = TRANSFORMS[transform]
    x = torch.randn(4, 3, dtype=DOUBLE)

    def op(x):
        return case.value(x, None)

    if sentence := REFUSED.get(case.kind, {}).get(transform):
        with pytest.raises(RuntimeError, match=sentence):
            run(op, x)
    else:
        expected = by_other_means(lambda x: case.value(x, "reference"), x)
        torch.testing.assert_close(run(op, x), expected)
    if case.module is not None:
        assert_it_kept_no_traces(case, transform, x)


def assert_it_kept_no_traces(case, transform, x):
    for copied in (copy.deepcopy(case.module), pickle.loads(pickle.dumps(case.module))):
        assert repr(copied) == repr(case.module)
    if not hasattr(type(case.module), "mi_lower_bound"):
        return
    if transform in UNDER_VMAP:
        with pytest.raises(RuntimeError, match=r"not within torch\.vmap"):
            _ = case.module.mi_lower_bound
    else:
        assert type(case.module.mi_lower_bound) is torch.Tensor
        assert case.module.mi_lower_bound.isfinite().all()


def test_what_a_module_has_to_tell_after_a_transform():
    x, loss = torch.randn(4, 3), mim4dd.InfoNCELoss()
    loss(x, x, **{"labels": LABELS, "key_labels": LABELS})
    expected = loss.loss_per_query, loss.mi_lower_bound
    grad(lambda x: loss(x, x.detach(), **{"labels": LABELS, "key_labels": LABELS}))(x)
    torch.testing.assert_close((loss.loss_per_query, loss.mi_lower_bound), expected)
    assert not loss.loss_per_query.requires_grad


@pytest.mark.parametrize("transform", [grad, lambda f: lambda x: jvp(f, (x,), (x,))[1]])
def test_what_is_captured_has_gradients_too(transform):
    x, key = random(4, 3), leaf(KEY)

    def captured(backend):
        result = transform(lambda x: mim4dd.info_nce(x, key, backend=backend))(x)
        return torch.autograd.grad(result.square().sum(), key)

    torch.testing.assert_close(captured(None), captured("reference"))


def test_a_checkpoint_recomputes_the_unroll_once():
    """The graphs that live and die within a step are none of its business."""
    calls = 0

    class Counting(nn.Linear):
        def forward(self, input):
            nonlocal calls
            calls += 1
            return super().forward(input)

    model = Counting(3, 3, dtype=DOUBLE)

    def train(x):
        return mim4dd.unroll_sgd(model, THETA, x, LABELS, BATCHES, lr=0.1).sum()

    gradient(train, KEY[:4])
    plainly, calls = calls, 0
    gradient(checkpointed(False)(train), KEY[:4])
    assert calls == plainly + len(BATCHES)


def test_the_walk_back_takes_steps_under_the_autocast_of_the_way_there():
    def train(x):
        model = nn.Linear(3, 3)
        theta = THETA.float()
        return mim4dd.unroll_sgd(model, theta, x, LABELS, BATCHES, lr=1.0).square().sum()

    inside, outside = leaf(KEY[:4].float()), leaf(KEY[:4].float())
    with torch.autocast("cpu", torch.bfloat16):
        train(inside).backward()
        value = train(outside)
    value.backward()
    assert torch.equal(inside.grad, outside.grad)
