"""What the unroll suite shares: cases, problems, the exact answer, the floor of convolutions."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from contrastive import THREADS, threads_of
from students import ConvNet, ResNet18
from torch import Tensor, nn
from trajectories import Gradients, Problem, adjoint, by_vjp

from mim4dd import flatten_parameters
from mim4dd.distill import networks

# Where rounding puts an activation on the other side of a ReLU's kink, gradients move by chance, in
# plain PyTorch as anywhere: those of ten images by 3e-3 to 2e-2 for a few activations in ten steps.
# A wrong formula moves them by more: TESLA's by 0.5, and by 0.6 the step size's.
_KINK_ERRORS = Gradients(images=6e-2, lr=1e-3, theta_0=1e-2)
_FEW_ACTIVATIONS = 10**5  # of the first layer in all steps: too few for one to be at its kink


class Case(NamedTuple):
    num_steps: int
    batch: int = 10
    width: int = 128
    network: str = "ConvNet-3"
    image_size: int = 32
    threads: int = THREADS[-1]  # 0: on a GPU

    def __str__(self) -> str:
        size = f"{self.image_size}x{self.image_size}"
        network = f"{self.network} width={self.width} {size}"
        return " ".join([f"T={self.num_steps} B={self.batch} {network}", *threads_of(self)])


@lru_cache(maxsize=1)
def problem_for(case: Case, device: str) -> tuple[Problem, nn.Module]:
    """See :func:`problem_of`; kept for the other providers of the case."""
    return problem_of(case, device)


@lru_cache(maxsize=2)  # exact, and as TESLA defines it
def answers_for(case: Case, device: str, moves: bool) -> tuple[Gradients, Gradients]:
    """The gradients by plain PyTorch in float32, and in float64."""
    problem, _ = problem_for(case, device)
    return tuple(adjoint(each, by_vjp, moves=moves) for each in (problem, in_float64(problem)))


def problem_of(case: Case, device: str) -> tuple[Problem, nn.Module]:
    """Ten classes, all images in every step; the target is as far away as an expert's few steps."""
    torch.manual_seed(0)
    size = case.image_size
    if case.network == "ResNet-18":
        model = ours = ResNet18(case.width).to(device)
    else:
        depth = int(case.network.removeprefix("ConvNet-"))
        model = ConvNet(case.width, size, depth).to(device)
        ours = networks.ConvNet(10, width=case.width, depth=depth, image_size=size).to(device)
    theta_0 = flatten_parameters(model)
    rows = torch.arange(case.batch, device=device)
    problem = Problem(
        model,
        theta_0.requires_grad_(),
        torch.randn(case.batch, 3, size, size, device=device, requires_grad=True),
        torch.tensor(0.01, device=device, requires_grad=True),
        rows % 10,
        rows.expand(case.num_steps, -1).contiguous(),
        theta_0.detach() + 1e-3 * torch.randn_like(theta_0),
    )
    return problem, ours


def in_float64(problem: Problem) -> Problem:
    """The same numbers in float64; the model's own parameters are not used."""
    leaves = {
        name: getattr(problem, name).detach().double().requires_grad_()
        for name in ("theta_0", "images", "lr")
    }
    return problem._replace(**leaves, target=problem.target.double())


def relative_errors(actual: Gradients, exact: Gradients) -> dict[str, float]:
    return {
        name: float((ours.double() - truth).norm() / truth.norm())
        for name, ours, truth in zip(Gradients._fields, actual, exact, strict=True)
    }


def check(case: Case, actual: Gradients, plain: Gradients, exact: Gradients) -> None:
    """Refuse gradients worse than plain PyTorch's, but for what activations at a kink explain."""
    activations = case.num_steps * case.batch * case.width * case.image_size**2
    plain_errors = relative_errors(plain, exact)
    for name, error in relative_errors(actual, exact).items():
        chance = 0 if activations <= _FEW_ACTIVATIONS else getattr(_KINK_ERRORS, name)
        allowed = 2 * plain_errors[name] + chance + 1e-5
        assert error <= allowed, (
            f"{name}: relative error {error:.1e} over the {allowed:.1e} allowed"
        )


class _Layer(NamedTuple):
    """A convolution's operands of one step; where several are of a shape, one stands for all."""

    images: Tensor
    weight: Tensor
    gradient: Tensor  # of the output
    options: tuple  # stride, padding, dilation, transposed, output padding, groups
    is_first: bool

    @property
    def count(self) -> int:
        """Forward, dW and dX in both sweeps; four in the double backward, less what x lacks."""
        return 6 if self.is_first else 9

    @property
    def flop(self) -> int:
        """Of one convolution."""
        return 2 * self.gradient.numel() * self.weight[0].numel()


def layers_of(problem: Problem) -> list[_Layer]:
    """All convolutions of a step of the model, channels-last."""
    layers: list[_Layer] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        operands = (
            tensor.detach().contiguous(memory_format=torch.channels_last)
            for tensor in (inputs[0], module.weight, output)
        )
        options = (module.stride, module.padding, module.dilation, False, (0, 0), module.groups)
        layers.append(_Layer(*operands, options, not layers))

    convolutions = [part for part in problem.model.modules() if isinstance(part, nn.Conv2d)]
    hooks = [part.register_forward_hook(note) for part in convolutions]
    with torch.no_grad():
        problem.model(problem.images[problem.batches[0]])
    for hook in hooks:
        hook.remove()
    return layers


def flop_of(problem: Problem) -> int:
    """Of the convolutions that the exact gradient needs with all activations kept."""
    return len(problem.batches) * sum(layer.count * layer.flop for layer in layers_of(problem))


def convolutions(problem: Problem) -> Callable[[], tuple]:
    """The floor: the convolutions of all steps and nothing else, with all activations kept."""
    layers, num_steps = layers_of(problem), len(problem.batches)

    def call():
        for _ in range(num_steps):
            for layer in layers:
                _forward(layer)
            for layer in layers:
                _backward(layer, not layer.is_first, True)
            for layer in layers:
                _double_backward(layer)
            for layer in layers:
                _backward(layer, True, True)
        return ()

    return call


def _double_backward(layer: _Layer) -> None:
    """conv(x, u) and dX(g, u) for every layer; conv(ẋ, w) and dW(g, ẋ) where the input moves."""
    _forward(layer)
    _backward(layer, True, not layer.is_first)
    if not layer.is_first:
        _forward(layer)


def _forward(layer: _Layer) -> Tensor:
    return torch.ops.aten.convolution(layer.images, layer.weight, None, *layer.options)


def _backward(layer: _Layer, needs_images: bool, needs_weight: bool) -> tuple:
    return torch.ops.aten.convolution_backward(
        layer.gradient,
        layer.images,
        layer.weight,
        None,
        *layer.options,
        [needs_images, needs_weight, False],
    )
