"""The ways to the gradients of a trajectory loss, in plain PyTorch and by other libraries."""

import importlib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


class Problem(NamedTuple):
    """T steps of SGD from θ_0, whose end is compared with a target."""

    model: nn.Module
    theta_0: Tensor  # (P,)
    images: Tensor  # (n, 3, H, W)
    lr: Tensor  # ()
    labels: Tensor  # (n,)
    batches: Tensor  # (T, B)
    target: Tensor  # (P,)


class Gradients(NamedTuple):
    images: Tensor
    lr: Tensor
    theta_0: Tensor


# (call, θ, images, labels, λ, lr) -> what a step sends to λ, its images and lr
Step = Callable[..., tuple[Tensor, Tensor, Tensor]]


def trajectory_loss(problem: Problem, theta: Tensor) -> Tensor:
    """MTT's: the start is a constant in it."""
    start = (problem.theta_0.detach() - problem.target).square().sum()
    return (theta - problem.target).square().sum() / start


def as_function(
    model: nn.Module, memory_format: torch.memory_format = torch.contiguous_format
) -> Callable[..., Tensor]:
    """The model as a function of one flat vector, whose views are its parameters."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    shapes = [parameter.shape for parameter in parameters]
    sizes = [parameter.numel() for parameter in parameters]

    def call(theta: Tensor, images: Tensor) -> Tensor:
        parts = zip(names, theta.split(sizes), shapes, strict=True)
        views = {name: part.view(shape) for name, part, shape in parts}
        return functional_call(model, views, (images.contiguous(memory_format=memory_format),))

    return call


def graph(
    problem: Problem, memory_format: torch.memory_format = torch.contiguous_format
) -> Gradients:
    """As MTT does: one graph of all steps, and one backward through it."""
    call, theta = as_function(problem.model, memory_format), problem.theta_0
    for rows in problem.batches:
        value = F.cross_entropy(call(theta, problem.images[rows]), problem.labels[rows])
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        theta = theta - problem.lr * gradient
    return gradients_of(problem, theta, problem.theta_0)


def gradients_of(problem: Problem, theta_T: Tensor, *start: Tensor) -> Gradients:
    """By one backward through a graph that begins at the parameters in ``start``."""
    leaves = (problem.images, problem.lr, *start)
    images, lr, *theta_0 = torch.autograd.grad(trajectory_loss(problem, theta_T), leaves)
    return Gradients(images, lr, torch.cat([part.flatten() for part in theta_0]))


def tesla(problem: Problem) -> Gradients:
    """TESLA: every step's gradient meets one fixed vector, −lr λ_T, whatever came after it.

    Its public code builds a graph in the first loop as well and drops it; here it does not.
    """
    call, lr = as_function(problem.model), problem.lr.detach()
    theta = problem.theta_0.detach()
    path, total = [], torch.zeros_like(theta)
    for rows in problem.batches:
        path.append(theta.requires_grad_())
        value = F.cross_entropy(call(theta, problem.images.detach()[rows]), problem.labels[rows])
        (gradient,) = torch.autograd.grad(value, theta)
        total += gradient
        theta = theta.detach() - lr * gradient
    start = problem.theta_0.detach() - problem.target
    scale = start.square().sum()
    fixed = 2 * (lr.square() * total - lr * start) / scale
    images = torch.zeros_like(problem.images)
    for theta, rows in zip(path, problem.batches, strict=True):
        batch = problem.images.detach()[rows].requires_grad_()
        value = F.cross_entropy(call(theta, batch), problem.labels[rows])
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        images.index_add_(0, rows, torch.autograd.grad(gradient, batch, fixed)[0])
    last = 2 * (start - lr * total) / scale
    return Gradients(images, -last.dot(total), last)


def adjoint(
    problem: Problem,
    step_back: Step,
    moves: bool = True,
    compiled: bool = False,
) -> Gradients:
    """The exact recursion over the steps in reverse, with the activations of one at a time.

    With ``moves=False`` λ stays what it is at the end, which defines what TESLA computes.
    """
    prepare = _compiled_steps if compiled else _steps
    forward, backward = prepare(problem.model, step_back)
    images, lr = problem.images.detach(), problem.lr.detach()
    path = [problem.theta_0.detach()]
    for rows in problem.batches:
        path.append(forward(path[-1], images[rows], problem.labels[rows], lr))
    last = path.pop().requires_grad_()
    (adjoint_theta,) = torch.autograd.grad(trajectory_loss(problem, last), last)
    grad_images, grad_lr = torch.zeros_like(images), torch.zeros_like(lr)
    for theta, rows in zip(reversed(path), problem.batches.flip(0), strict=True):
        inputs = (theta, images[rows], problem.labels[rows], adjoint_theta, lr)
        before, to_images, to_lr = backward(*inputs)
        grad_images.index_add_(0, rows, to_images)
        grad_lr += to_lr
        adjoint_theta = before if moves else adjoint_theta
    return Gradients(grad_images, grad_lr, adjoint_theta)


def _steps(model: nn.Module, step_back: Step) -> tuple[Callable[..., Tensor], Step]:
    """Of contiguous images: forward mode through GroupNorm takes no others."""
    call = as_function(model)
    return partial(_step, call), partial(step_back, call)


@lru_cache(maxsize=8)
def _compiled_steps(model: nn.Module, step_back: Step) -> tuple[Callable[..., Tensor], Step]:
    """Once a network; the harness forgets what was compiled where a case begins.

    Inductor lays out memory itself: channels-last images gave the same bits as these.
    """
    steps = _steps(model, step_back)
    forward, backward = (torch.compile(step, fullgraph=True, dynamic=False) for step in steps)
    return forward, backward


def _step(call, theta, images, labels, lr):
    gradient = torch.func.grad(partial(_value, call, labels=labels))
    return theta - lr * gradient(theta, images)


def by_vjp(call, theta, images, labels, adjoint_theta, lr):
    """Reverse over reverse."""
    gradient = torch.func.grad(partial(_value, call, labels=labels))
    direction, pull_back = torch.func.vjp(gradient, theta, images)
    to_theta, to_images = pull_back(-lr * adjoint_theta)
    return adjoint_theta + to_theta, to_images, -adjoint_theta.dot(direction)


def by_jvp(call, theta, images, labels, adjoint_theta, lr):
    """Forward over reverse: the loss's own tangent is what lr gets."""
    value = partial(_value, call, labels=labels)
    gradients = torch.func.grad_and_value(value, argnums=(0, 1))
    _, tangents = torch.func.jvp(lambda theta: gradients(theta, images), (theta,), (adjoint_theta,))
    (to_theta, to_images), slope = tangents
    return adjoint_theta - lr * to_theta, -lr * to_images, -slope


def _value(call, theta, images, labels):
    return F.cross_entropy(call(theta, images), labels)


def higher(problem: Problem) -> Gradients:
    """Its copy of the weights is the start that gradients are taken for."""
    model = _with_parameters(problem)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    context = importlib.import_module("higher").innerloop_ctx
    override = {"lr": [problem.lr]}
    with context(model, optimizer, copy_initial_weights=True, override=override) as (fast, inner):
        for rows in problem.batches:
            inner.step(F.cross_entropy(fast(problem.images[rows]), problem.labels[rows]))
        theta_T = torch.cat([part.flatten() for part in fast.parameters()])
        return gradients_of(problem, theta_T, *fast.parameters(time=0))


def torchopt(problem: Problem) -> Gradients:
    """MetaSGD puts its results in the place of the model's parameters, and back at the end."""
    library = importlib.import_module("torchopt")
    model = _with_parameters(problem)
    start = list(model.parameters())
    state = library.extract_state_dict(model, by="reference")
    optimizer = library.MetaSGD(model, lr=problem.lr)
    names = [name for name, _ in model.named_parameters()]
    try:
        for rows in problem.batches:
            optimizer.step(F.cross_entropy(model(problem.images[rows]), problem.labels[rows]))
        parts = [_attribute(model, name).flatten() for name in names]
        return gradients_of(problem, torch.cat(parts), *start)
    finally:
        library.recover_state_dict(model, state)


def _attribute(model: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    return getattr(model.get_submodule(path), last)


def _with_parameters(problem: Problem) -> nn.Module:
    nn.utils.vector_to_parameters(problem.theta_0.detach(), problem.model.parameters())
    return problem.model
