"""What the unrolls refuse at their edge."""

import numbers

import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd._checks import (
    check_choice,
    check_classes,
    check_floating,
    check_integer,
    check_matching,
    check_probabilities,
    check_same_device,
    check_tensor,
    mix_under_autocast,
)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training changes, each once, in ``model.parameters()`` order."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            f"model must have parameters that require a gradient, {type(model).__name__} has none"
        )
    return parameters


def check_theta(theta_0: Tensor, num_parameters: int) -> None:
    """Require the parameters of a model in one row, or one row per trajectory."""
    check_floating("theta_0", theta_0)
    if theta_0.dim() not in (1, 2) or theta_0.shape[-1] != num_parameters or not theta_0.numel():
        raise ValueError(
            f"theta_0 must be (P,) or (K, P) with the P = {num_parameters} parameters of model, "
            f"got shape {tuple(theta_0.shape)}"
        )


def check_data(theta_0: Tensor, image_syn: Tensor, label_syn: Tensor, batches: Tensor) -> None:
    """Require samples, labels and batches that fit together."""
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
    _check_batches(theta_0, image_syn, batches)


def num_classes_of(loss: object, label_syn: Tensor) -> int | None:
    """What cross-entropy asks of the network, of labels that it can take; None of another loss.

    Raises:
        ValueError: If a class is negative, or a row holds no probabilities.
    """
    is_module = isinstance(loss, nn.CrossEntropyLoss) and loss.ignore_index == -100
    if loss is not F.cross_entropy and not is_module:
        return None
    if label_syn.dim() == 1:
        check_classes("label_syn", label_syn)
        return int(label_syn.max()) + 1
    check_probabilities("label_syn", label_syn)
    return label_syn.shape[1]


def check_augmented(augmented: object, samples: Tensor) -> None:
    """Require images in the samples' dtype, as many as the samples or a multiple of it.

    Under autocast products in ``augment`` may have made another dtype of it.
    """
    if not isinstance(augmented, Tensor):
        raise TypeError(f"augment must return a torch.Tensor, got {type(augmented).__name__}")
    if mix_under_autocast(samples, augmented):
        check_same_device("image_syn", samples, "what augment returns", augmented)
    else:
        check_matching("image_syn", samples, "what augment returns", augmented)
    number = len(augmented) if augmented.dim() else 0
    if not number or number % len(samples):
        raise ValueError(
            f"augment must return as many images as the {len(samples)} it is given, or a multiple "
            f"of it: the whole batch once, then the whole batch again; got shape "
            f"{tuple(augmented.shape)}"
        )


def check_outputs(output: object, num_classes: int) -> None:
    """Require logits (B, C) of all classes; what is no tensor is left to the loss."""
    if isinstance(output, Tensor) and (output.dim() != 2 or output.shape[1] < num_classes):
        raise ValueError(
            "label_syn must be of at most as many classes as model has outputs, "
            f"got {num_classes} classes and outputs of shape {tuple(output.shape)}"
        )


def _check_batches(theta_0: Tensor, image_syn: Tensor, batches: Tensor) -> None:
    check_tensor("batches", batches)
    check_integer("batches", batches)
    check_same_device("theta_0", theta_0, "batches", batches)
    several = theta_0.dim() == 2
    if batches.dim() != 2 and not (several and batches.dim() == 3):
        own = ", or (T, K, B) where theta_0 is (K, P)" if several else ""
        raise ValueError(f"batches must be (T, B){own}, got shape {tuple(batches.shape)}")
    if batches.dim() == 3 and batches.shape[1] != theta_0.shape[0]:
        raise ValueError(
            f"batches (T, K, B) must have K = {theta_0.shape[0]} as theta_0 has, "
            f"got shape {tuple(batches.shape)}"
        )
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


def check_walk(theta_0: Tensor, num_steps: int, window: int, history: str, budget: int) -> None:
    """Require a way back that there is."""
    check_choice("history", history, ("device", "host", "checkpoints"))
    if not 1 <= window <= num_steps:
        raise ValueError(f"window must be from 1 to the {num_steps} steps, got {window}")
    if window < num_steps and theta_0.requires_grad:
        raise ValueError(
            f"theta_0 has no gradient through a window of {window} of {num_steps} steps: "
            "detach it, or leave window out"
        )
    if budget < 0:
        raise ValueError(f"memory_budget must be at least 0 bytes, got {budget}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Require a number, ``low <= value < high``; of a tensor the gradient would get lost."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value < high:
        raise ValueError(f"{name} must lie in [{low}, {high}), got {value}")


def check_step_graphs(theta_0: Tensor, step_graphs: object, memory_budget: int) -> None:
    """Require a GPU for captured steps, and no steps kept beside them."""
    if step_graphs is None:
        return
    if theta_0.device.type != "cuda":
        raise ValueError(f"step_graphs needs theta_0 on a CUDA device, got {theta_0.device}")
    if memory_budget:
        raise ValueError(
            "step_graphs recomputes every step: memory_budget must be 0 with it, "
            f"got {memory_budget}"
        )
