"""Options of torch.optim.SGD, parameter groups included, as mim4dd.unroll_sgd takes them."""

import typing

import torch
from torch import nn

from mim4dd._unroll.checks import trainable as _trainable

__all__ = ["SGDOptions", "sgd_options"]


class SGDOptions(typing.TypedDict):
    """Keyword arguments of :func:`mim4dd.unroll_sgd`.

    Example:
        >>> import torch
        >>> from mim4dd.adapters.torch_optim import SGDOptions
        >>> lr = torch.tensor([[0.1]])
        >>> SGDOptions(lr=lr, momentum=0.9, weight_decay=[0.0], nesterov=False)["momentum"]
        0.9
    """

    lr: torch.Tensor  # (1, L)
    momentum: float
    weight_decay: list[float]  # (L,)
    nesterov: bool


def sgd_options(optimizer: torch.optim.SGD, model: nn.Module) -> SGDOptions:
    """How ``optimizer`` would train ``model``, for :func:`mim4dd.unroll_sgd`.

    Step size and weight decay are read for each of the L parameter tensors that are trained. A step
    size that is a tensor stays connected to it, so that it gets a gradient.

    Args:
        optimizer: Over all trainable parameters of ``model``, in any number of groups. It is only
            read: ``foreach``, ``fused`` and the like change no value. Its step sizes are taken as
            they are now; for a schedule, stack them to (T, L).
        model: The module that is trained.

    Returns:
        ``lr`` (1, L), in dtype and on device of the parameters; ``momentum``, ``weight_decay`` (L,)
        and ``nesterov``.

    Raises:
        TypeError: If ``optimizer`` is no :class:`torch.optim.SGD`, or a class of its own below it.
        ValueError: If its parameters are not those of ``model``, or ask for what the unroll does
            not do: dampening, ``maximize``, groups that differ in momentum or Nesterov's, a
            velocity from earlier steps.

    Example:
        >>> import torch, mim4dd
        >>> from mim4dd.adapters.torch_optim import sgd_options
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(
        ...     [{"params": [model.weight], "weight_decay": 0.01}, {"params": [model.bias]}], lr=0.1
        ... )
        >>> options = sgd_options(optimizer, model)
        >>> options["lr"], options["weight_decay"]
        (tensor([[0.1000, 0.1000]]), [0.01, 0.0])
        >>> images, labels = torch.randn(2, 4), torch.tensor([0, 1])
        >>> theta_T = mim4dd.unroll_sgd(
        ...     model, mim4dd.flatten_parameters(model), images, labels, labels[None], **options
        ... )
    """
    if type(optimizer) is not torch.optim.SGD:
        raise TypeError(f"optimizer must be a torch.optim.SGD, got {type(optimizer).__name__}")
    groups = _group_of_every_tensor(optimizer, model)
    momentum, nesterov = groups[0]["momentum"], groups[0]["nesterov"]
    for group in groups:
        _check_group(group, momentum, nesterov)
    buffers = [state.get("momentum_buffer") for state in optimizer.state.values()]
    if momentum and any(buffer is not None for buffer in buffers):
        raise ValueError(
            "optimizer must be new: it has momentum from earlier steps, but the unroll starts "
            "without any"
        )
    like = _trainable(model)[0]
    step_sizes = [
        torch.as_tensor(group["lr"], dtype=like.dtype, device=like.device).reshape(())
        for group in groups
    ]
    return SGDOptions(
        lr=torch.stack(step_sizes)[None],
        momentum=momentum,
        weight_decay=[float(group["weight_decay"]) for group in groups],
        nesterov=nesterov,
    )


def _group_of_every_tensor(
    optimizer: torch.optim.SGD, model: nn.Module
) -> list[dict[str, typing.Any]]:
    """The parameter group of each trainable parameter, in ``model.parameters()`` order. (L,)"""
    group_of = {id(each): group for group in optimizer.param_groups for each in group["params"]}
    foreign = group_of.keys() - {id(parameter) for parameter in model.parameters()}
    if foreign:
        raise ValueError(
            f"optimizer must hold parameters of model alone, got {len(foreign)} of another"
        )
    _trainable(model)  # refuses a model without any
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in group_of:
            raise ValueError(
                f"optimizer must hold all trainable parameters of model, {name} is not"
            )
    return [group_of[id(parameter)] for parameter in _trainable(model)]


def _check_group(group: dict[str, typing.Any], momentum: float, nesterov: bool) -> None:
    if group["maximize"]:
        raise ValueError("optimizer must minimise, got a group with maximize=True")
    if group["momentum"] and group["dampening"]:
        raise ValueError(f"optimizer must have dampening 0, got {group['dampening']}")
    if (group["momentum"], group["nesterov"]) != (momentum, nesterov):
        raise ValueError(
            "optimizer must have one momentum in all groups, got "
            f"{momentum} (nesterov={nesterov}) and "
            f"{group['momentum']} (nesterov={group['nesterov']})"
        )
