"""Exact gradients through T inner SGD steps, with activations of one step at a time."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mim4dd._adjoint import Augment, Loss, Problem, UnrolledSGD
from mim4dd._checks import (
    check_floating,
    check_integer,
    check_matching,
    check_rank,
    check_same_device,
    check_tensor,
)

__all__ = ["flatten_parameters", "functional_model", "unroll_sgd"]


def flatten_parameters(model: nn.Module) -> Tensor:
    """Copy a model's parameters into one flat vector, in ``model.parameters()`` order.

    Returns:
        A detached copy; a parameter that several modules share stands once. (P,)

    Raises:
        ValueError: If the model has no parameters.

    Example:
        >>> import torch, mim4dd
        >>> mim4dd.flatten_parameters(torch.nn.Linear(3, 2)).shape
        torch.Size([8])
    """
    parameters = [parameter.detach().reshape(-1) for parameter in model.parameters()]
    if not parameters:
        raise ValueError(f"model must have parameters, {type(model).__name__} has none")
    return torch.cat(parameters)


def functional_model(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """``model`` as a function of its flat parameters (P,) and its input.

    Buffers are handed to every call as fresh copies, so that no call sees another's running
    statistics and the model itself stays as it is.
    """
    parameters = list(model.parameters())
    shapes = [parameter.shape for parameter in parameters]
    sizes = [parameter.numel() for parameter in parameters]
    place = {id(parameter): index for index, parameter in enumerate(parameters)}
    # Every slot once. functional_call ties weights on its own, but fills a module that occurs twice
    # in the model twice, and puts the replacement back instead of the original.
    slots = {
        f"{path}.{name}".lstrip("."): place[id(parameter)]
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    }
    buffers = {
        f"{path}.{name}".lstrip("."): buffer
        for path, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
    }

    def call(theta: Tensor, images: Tensor) -> Tensor:
        parts = [part.view(shape) for part, shape in zip(theta.split(sizes), shapes, strict=True)]
        state = {name: parts[index] for name, index in slots.items()}
        state |= {name: buffer.clone() for name, buffer in buffers.items()}
        return functional_call(model, state, (images,), tie_weights=False)

    return call


def unroll_sgd(
    model: nn.Module,
    theta_0: Tensor,  # (P,)
    image_syn: Tensor,  # (n, ...)
    label_syn: Tensor,  # (n,) or (n, C)
    batches: Tensor,  # (T, B)
    *,
    lr: Tensor | float,  # (), (T,) or (P,)
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    loss: Loss = F.cross_entropy,
    augment: Augment | None = None,
    seed: int = 0,
    memory_budget: int = 0,
) -> Tensor:
    r"""Train ``model`` for T steps of SGD on synthetic data, differentiably.

    .. math::
        v_{t+1} &= \mu v_t + \nabla_\theta \ell(\theta_t; a_t(x_t), y_t) + w\,\theta_t \\
        \theta_{t+1} &= \theta_t - \eta_t v_{t+1}

    One autograd node: any loss on the result sends exact gradients to ``image_syn``, soft
    ``label_syn``, ``lr`` and ``theta_0``. The backward walks the steps in reverse with the adjoint
    recursion and recomputes each one, so that it holds the activations of one step, whatever T,
    and about 2 √T of the θ_t (P numbers each, twice that with momentum). With the whole
    path in ``memory_budget`` it holds all T of them and saves a forward sweep; with activations in
    it too, it recomputes nothing. Under :class:`torch.autograd.graph.save_on_cpu` the stored θ_t
    wait in host memory. Differentiable once.

    Args:
        model: Any module from images to the first argument of ``loss``. It is left as it is; its
            buffers are read, and what a step writes to them is dropped.
        theta_0: Parameters to start from, in ``model.parameters()`` order. (P,)
        image_syn: Synthetic samples, in dtype and on device of ``theta_0``. (n, ...)
        label_syn: Their classes as integers (n,), or as probabilities (n, C).
        batches: Which samples each step takes. (T, B), integer, in [0, n)
        lr: Step size: one, one per step, or one per parameter.
        momentum: μ in [0, 1), as in :class:`torch.optim.SGD`.
        weight_decay: w ≥ 0, as in :class:`torch.optim.SGD`.
        loss: The inner loss, ``loss(output, labels) -> scalar``.
        augment: ``augment(images, generator) -> images``, differentiable, drawing all that is
            random from ``generator``: the backward replays every draw bit for bit.
        seed: Seeds the augmentation of all steps.
        memory_budget: Bytes that may be spent on recomputing less: first on all the θ_t, then on
            the activations of as many steps as fit. 0 spends the least memory.

    Returns:
        θ_T, in the dtype of ``theta_0``. (P,)

    Raises:
        ValueError: On a shape, device, index or value that does not fit.
        TypeError: On a dtype that does not fit.
        RuntimeError: In the backward, if a recomputed step differs from the one taken: the model
            draws random numbers of its own, as dropout does.

    Example:
        >>> import torch, mim4dd
        >>> model = torch.nn.Linear(4, 2)
        >>> image_syn = torch.randn(2, 4, requires_grad=True)
        >>> theta_0 = mim4dd.flatten_parameters(model)
        >>> batches = torch.tensor([[0, 1]] * 5)
        >>> theta_T = mim4dd.unroll_sgd(
        ...     model, theta_0, image_syn, torch.tensor([0, 1]), batches, lr=0.1
        ... )
        >>> mim4dd.trajectory_loss(theta_T, theta_0, torch.zeros(10)).backward()
        >>> image_syn.grad.shape
        torch.Size([2, 4])

    References:
        docs/math.md, "The adjoint of SGD". Trajectory matching: Cazenavette et al.,
        arXiv:2203.11932.
    """
    if not isinstance(lr, Tensor):
        lr = torch.tensor(lr, dtype=theta_0.dtype, device=theta_0.device)
    _check_model(model, theta_0)
    _check_data(theta_0, image_syn, label_syn, batches)
    _check_options(theta_0, batches, lr, momentum, weight_decay, memory_budget)
    if label_syn.dim() == 1:
        label_syn = label_syn.long()  # the one integer dtype that every loss takes
    batches = batches.long()  # uint8 would index as a mask
    num_steps = batches.shape[0]
    seeds = torch.randint(2**63 - 1, (num_steps,), generator=torch.Generator().manual_seed(seed))
    problem = Problem(
        call=functional_model(model),
        loss=loss,
        augment=augment,
        seeds=seeds.tolist(),
        momentum=momentum,
        weight_decay=weight_decay,
        memory_budget=memory_budget if torch.is_grad_enabled() else 0,
    )
    return UnrolledSGD.apply(problem, theta_0, image_syn, label_syn, batches, lr)


def _check_model(model: nn.Module, theta_0: Tensor) -> None:
    check_rank("theta_0", theta_0, 1)
    check_floating("theta_0", theta_0)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ValueError(f"model must have no frozen parameters, got requires_grad=False: {frozen}")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if theta_0.numel() != num_parameters:
        raise ValueError(
            f"theta_0 must hold the {num_parameters} parameters of model, got {theta_0.numel()}"
        )


def _check_data(theta_0: Tensor, image_syn: Tensor, label_syn: Tensor, batches: Tensor) -> None:
    check_floating("image_syn", image_syn)
    check_matching("theta_0", theta_0, "image_syn", image_syn)
    if image_syn.dim() < 2:
        raise ValueError(f"image_syn must be (n, ...), got shape {tuple(image_syn.shape)}")
    check_tensor("label_syn", label_syn)
    if label_syn.dim() not in (1, 2) or label_syn.shape[0] != image_syn.shape[0]:
        raise ValueError(
            f"label_syn must be (n,) or (n, C) with n = {image_syn.shape[0]} samples, "
            f"got shape {tuple(label_syn.shape)}"
        )
    if label_syn.dim() == 1:
        check_integer("label_syn (n,)", label_syn)
        check_same_device("theta_0", theta_0, "label_syn", label_syn)
    else:
        check_matching("theta_0", theta_0, "label_syn", label_syn)
    check_rank("batches", batches, 2)
    check_integer("batches", batches)
    check_same_device("theta_0", theta_0, "batches", batches)
    if batches.numel() == 0:
        raise ValueError(
            f"batches must have at least one step of one sample, got {tuple(batches.shape)}"
        )
    lowest, highest = (int(bound) for bound in batches.aminmax())
    if lowest < 0 or highest >= image_syn.shape[0]:
        raise ValueError(
            f"batches must index the {image_syn.shape[0]} rows of image_syn, "
            f"got values from {lowest} to {highest}"
        )


def _check_options(
    theta_0: Tensor,
    batches: Tensor,
    lr: Tensor,
    momentum: float,
    weight_decay: float,
    memory_budget: int,
) -> None:
    num_steps, num_parameters = batches.shape[0], theta_0.numel()
    check_matching("theta_0", theta_0, "lr", lr)
    if tuple(lr.shape) not in ((), (num_steps,), (num_parameters,)):
        raise ValueError(
            f"lr must be (), (T,) = ({num_steps},) or (P,) = ({num_parameters},), "
            f"got shape {tuple(lr.shape)}"
        )
    if lr.dim() == 1 and num_steps == num_parameters:
        raise ValueError(
            f"lr is ambiguous where T = P = {num_steps}: pass a scalar, or another number of steps"
        )
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(f"weight_decay must be at least 0 and finite, got {weight_decay}")
    if memory_budget < 0:
        raise ValueError(f"memory_budget must be at least 0 bytes, got {memory_budget}")
