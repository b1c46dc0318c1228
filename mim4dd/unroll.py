"""Exact gradients through T inner training steps, with activations of one step at a time."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mim4dd._checks import check_choice, check_matching
from mim4dd._turns import alone_in
from mim4dd._unroll.checks import (
    check_data,
    check_range,
    check_step_graphs,
    check_theta,
    check_walk,
    num_classes_of,
    trainable,
)
from mim4dd._unroll.decay import DecayPerTensor, one_decay
from mim4dd._unroll.diagnostics import UnrollDiagnostics
from mim4dd._unroll.functional import FunctionalModel
from mim4dd._unroll.graphs import StepGraphs
from mim4dd._unroll.history import History, Place
from mim4dd._unroll.node import Problem, Unroll, refuse_transforms
from mim4dd._unroll.optimizers import SGD, Adam, Optimizer
from mim4dd._unroll.step_gradient import Loss, StepLoss
from mim4dd._unroll.step_sizes import StepSizes
from mim4dd._unroll.steps import Augment

__all__ = ["flatten_parameters", "unroll_adam", "unroll_sgd"]


def flatten_parameters(model: nn.Module) -> Tensor:
    """Copy a model's parameters into one flat vector, in ``model.parameters()`` order.

    Returns:
        A detached copy, without frozen parameters (``requires_grad=False``); one that several
        modules share stands once. (P,)

    Raises:
        ValueError: If the model has no parameters to train.

    Example:
        >>> import torch, mim4dd
        >>> mim4dd.flatten_parameters(torch.nn.Linear(3, 2)).shape
        torch.Size([8])
    """
    with alone_in(model):
        return torch.cat([parameter.detach().reshape(-1) for parameter in trainable(model)])


def unroll_sgd(
    model: nn.Module,
    theta_0: Tensor,  # (P,) or (K, P)
    image_syn: Tensor,  # (n, ...)
    label_syn: Tensor,  # (n,) or (n, C)
    batches: Tensor,  # (T, B) or (T, K, B)
    *,
    lr: Tensor | float,  # (), (T,), (L,), (P,), or 2-d
    momentum: float = 0.0,
    weight_decay: float | Sequence[float] = 0.0,  # or (L,)
    nesterov: bool = False,
    loss: Loss = F.cross_entropy,
    augment: Augment | None = None,
    seed: int = 0,
    window: int | None = None,
    method: Literal["exact", "tesla"] = "exact",
    memory_budget: int = 0,
    history: Place = "device",
    step_graphs: StepGraphs | None = None,
    diagnostics: UnrollDiagnostics | None = None,
) -> Tensor:
    r"""Train ``model`` for T steps of SGD on synthetic data, differentiably.

    .. math::
        v_{t+1} &= \mu v_t + \nabla_\theta \ell(\theta_t; a_t(x_t), y_t) + w\,\theta_t \\
        \theta_{t+1} &= \theta_t - \eta_t v_{t+1}

    One autograd node: any loss on the result sends exact gradients to ``image_syn``, soft
    ``label_syn``, ``lr`` and ``theta_0``. The backward walks the steps in reverse with the adjoint
    recursion and recomputes each one, so that it holds the activations of one step, whatever T,
    beside the θ_t of all steps. Differentiable once.

    Args:
        model: Any module from images to the first argument of ``loss``. It is left as it is: its
            buffers are read, and what a step writes to them is dropped, so that BatchNorm in train
            mode normalises by the batch, and in eval mode by the statistics it has. Frozen
            parameters (``requires_grad=False``) are constants.
        theta_0: Parameters to start from, as :func:`flatten_parameters` orders them; or a row for
            each of K trajectories, which train side by side on the same samples. (P,) or (K, P)
        image_syn: Synthetic samples, in dtype and on device of ``theta_0``. (n, ...)
        label_syn: Their classes as integers (n,), or as probabilities (n, C). For another ``loss``
            than cross-entropy, whatever that takes.
        batches: Which samples each step takes, (T, B), or (T, K, B) where trajectories differ.
            Integer, in [0, n)
        lr: Step size: one, one per step (T,), per parameter tensor (L,), per parameter (P,), or
            per step and one of these: (T, L), (T, P). A shape that fits two of them is refused;
            (T, 1), (1, L) and (1, P) say which.
        momentum: μ in [0, 1), as in :class:`torch.optim.SGD`.
        weight_decay: w ≥ 0, as in :class:`torch.optim.SGD`; or one for each parameter tensor that
            is trained, in ``model.parameters()`` order, as parameter groups have it. (L,)
        nesterov: Descend along ``∇ℓ + wθ + μ v_{t+1}``, as in :class:`torch.optim.SGD`.
        loss: The inner loss, ``loss(output, labels) -> scalar``. What it, ``model`` or ``augment``
            read beside their arguments is constant: a captured tensor that requires a gradient,
            which it would not get, is refused.
        augment: ``augment(images, generator) -> images``, differentiable, drawing all that is
            random from ``generator``: the backward replays every draw bit for bit. It may change
            the size of images, and return m of each: all B once, then all once more, as MTT's
            crops of a canvas are; labels are repeated likewise.
        seed: Seeds the augmentation of all steps.
        window: Walk back through the last W steps only and take θ_{T−W} for a constant, as
            RaT-BPTT does. By default all T: the exact gradient.
        method: ``"tesla"`` leaves λ_t = ∂L/∂θ_T for all t, as TESLA does: no Hessian products, and
            not the gradient (docs/math.md tells how far off). Plain SGD only.
        memory_budget: Bytes that may be spent on keeping the activations of as many of the last
            steps as fit, which then need not be recomputed. 0 recomputes every step.
        history: Where the θ_t (with momentum also the v_t) wait: on the ``"device"``, in
            ``"host"`` memory, or as ``"checkpoints"``: every ⌈√T⌉-th, with the steps between
            trained once more.
        step_graphs: Captures of the steps as CUDA graphs, kept from call to call by the caller; on
            a GPU, with ``memory_budget=0``. See :class:`mim4dd.StepGraphs`.
        diagnostics: Filled with the loss of every step, and with ‖∂L/∂θ_t‖ by the backward.

    Returns:
        θ_T, in shape and dtype of ``theta_0``.

    Raises:
        ValueError: On a shape, device, index, label or value that does not fit, and where the first
            step reads a tensor that requires a gradient and is no input.
        TypeError: On a dtype that does not fit.
        DivergenceError: If a step's loss, or θ_T, is not finite. Names the step.
        RuntimeError: If the model changes its parameters in place. In the backward, if a recomputed
            step differs from the one taken: the model draws random numbers of its own, as dropout
            does.

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
        arXiv:2203.11932. Truncation: Feng et al., arXiv:2311.07025 (RaT-BPTT). TESLA: Cui et al.,
        arXiv:2211.10586.
    """
    check_range("momentum", momentum, 0, 1)
    if nesterov and not momentum:
        raise ValueError("nesterov needs a momentum above 0, got 0")
    check_choice("method", method, ("exact", "tesla"))
    call = FunctionalModel(model)
    check_theta(theta_0, sum(call.sizes))
    decay = one_decay(weight_decay, len(call.sizes))
    if method == "tesla" and (momentum or decay):
        raise ValueError(
            f"method 'tesla' is for plain SGD, got momentum {momentum} and weight_decay {decay}"
        )
    return _unroll(
        _sgd(momentum, decay, nesterov, call.sizes, theta_0),
        call,
        theta_0,
        image_syn,
        label_syn,
        batches,
        lr,
        loss=loss,
        augment=augment,
        seed=seed,
        window=window,
        tesla=method == "tesla",
        memory_budget=memory_budget,
        history=history,
        step_graphs=step_graphs,
        diagnostics=diagnostics,
    )


def unroll_adam(
    model: nn.Module,
    theta_0: Tensor,  # (P,) or (K, P)
    image_syn: Tensor,  # (n, ...)
    label_syn: Tensor,  # (n,) or (n, C)
    batches: Tensor,  # (T, B) or (T, K, B)
    *,
    lr: Tensor | float,  # (), (T,), (L,), (P,), or 2-d
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_root: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    loss: Loss = F.cross_entropy,
    augment: Augment | None = None,
    seed: int = 0,
    window: int | None = None,
    memory_budget: int = 0,
    history: Place = "device",
    step_graphs: StepGraphs | None = None,
    diagnostics: UnrollDiagnostics | None = None,
) -> Tensor:
    r"""Train ``model`` for T steps of Adam, or AdamW, on synthetic data, differentiably.

    .. math::
        m' &= \beta_1 m + (1 - \beta_1)\, g, \qquad s' = \beta_2 s + (1 - \beta_2)\, g^2 \\
        \theta_{t+1} &= \theta_t - \eta_t\, \frac{m' / (1 - \beta_1^{t+1})}
            {\sqrt{s' / (1 - \beta_2^{t+1}) + \epsilon_r} + \epsilon}

    As :func:`unroll_sgd` in all else: one autograd node, exact gradients, activations of one step.
    Three vectors wait for every step, θ_t and both moments.

    Args:
        model, theta_0, image_syn, label_syn, batches, lr: As for :func:`unroll_sgd`.
        betas: β₁ and β₂ in [0, 1).
        eps: ε ≥ 0, added to the root, as in :class:`torch.optim.Adam`.
        eps_root: ε_r ≥ 0, added under the root. With 0 the root has no derivative where every
            gradient so far was 0, and nothing is sent through it there; a small ε_r bounds the
            derivative near such places.
        weight_decay: w ≥ 0: ``wθ`` is added to the gradient, or, ``decoupled``, θ shrinks by
            ``η w`` as in :class:`torch.optim.AdamW`.
        decoupled: Whether weight decay is AdamW's.
        loss, augment, seed, window, memory_budget, history, step_graphs, diagnostics: As for
            :func:`unroll_sgd`.

    Returns:
        θ_T, in shape and dtype of ``theta_0``.

    Raises:
        ValueError, TypeError, DivergenceError, RuntimeError: As :func:`unroll_sgd`.

    Example:
        >>> import torch, mim4dd
        >>> model = torch.nn.Linear(4, 2)
        >>> image_syn = torch.randn(2, 4, requires_grad=True)
        >>> theta_T = mim4dd.unroll_adam(
        ...     model, mim4dd.flatten_parameters(model), image_syn, torch.tensor([0, 1]),
        ...     torch.tensor([[0, 1]] * 5), lr=1e-3,
        ... )
        >>> theta_T.square().sum().backward()
        >>> image_syn.grad.shape
        torch.Size([2, 4])

    References:
        docs/math.md, "The adjoint of Adam". Kingma, Ba, arXiv:1412.6980. Loshchilov, Hutter,
        arXiv:1711.05101.
    """
    for index, beta in enumerate(betas):
        check_range(f"betas[{index}]", beta, 0, 1)
    for name, value in (("eps", eps), ("eps_root", eps_root), ("weight_decay", weight_decay)):
        check_range(name, value, 0, float("inf"))
    call = FunctionalModel(model)
    check_theta(theta_0, sum(call.sizes))
    return _unroll(
        Adam(*betas, eps, eps_root, weight_decay, decoupled),
        call,
        theta_0,
        image_syn,
        label_syn,
        batches,
        lr,
        loss=loss,
        augment=augment,
        seed=seed,
        window=window,
        tesla=False,
        memory_budget=memory_budget,
        history=history,
        step_graphs=step_graphs,
        diagnostics=diagnostics,
    )


def _sgd(
    momentum: float, decay: float | list[float], nesterov: bool, sizes: list[int], theta_0: Tensor
) -> Optimizer:
    if not isinstance(decay, list):
        return SGD(momentum, decay, nesterov)
    return DecayPerTensor.around(SGD(momentum, 0.0, nesterov), decay, sizes, theta_0)


def _unroll(
    optimizer: Optimizer,
    call: FunctionalModel,
    theta_0: Tensor,
    image_syn: Tensor,
    label_syn: Tensor,
    batches: Tensor,
    lr: Tensor | float,
    *,
    loss: Loss,
    augment: Augment | None,
    seed: int,
    window: int | None,
    tesla: bool,
    memory_budget: int,
    history: Place,
    step_graphs: StepGraphs | None,
    diagnostics: UnrollDiagnostics | None,
) -> Tensor:
    """What the inner optimisers share."""
    refuse_transforms()
    check_data(theta_0, image_syn, label_syn, batches)
    num_steps = batches.shape[0]
    window = num_steps if window is None else window
    check_walk(theta_0, num_steps, window, history, memory_budget)
    check_step_graphs(theta_0, step_graphs, memory_budget)
    if not isinstance(lr, Tensor):
        check_range("lr", lr, -float("inf"), float("inf"))
        lr = torch.tensor(lr, dtype=theta_0.dtype, device=theta_0.device)
    check_matching("theta_0", theta_0, "lr", lr)
    StepSizes(lr, num_steps, call.sizes)  # refuses a shape that does not fit
    if label_syn.dim() == 1:
        label_syn = label_syn.long()  # the one integer dtype that every loss takes
    seeds = torch.randint(2**63 - 1, (num_steps,), generator=torch.Generator().manual_seed(seed))
    problem = Problem(
        loss=StepLoss(
            call,
            loss,
            own_samples=batches.dim() == 3,
            refuses_captured=torch.is_grad_enabled(),
            num_classes=num_classes_of(loss, label_syn),
        ),
        graphs=step_graphs,
        augment=augment,
        seeds=seeds.tolist(),
        optimizer=optimizer,
        history=History(history, first=num_steps - window, num_steps=num_steps),
        tesla=tesla,
        memory_budget=memory_budget,
        differentiable=torch.is_grad_enabled(),
        diagnostics=diagnostics,
    )
    # uint8 would index as a mask
    return Unroll.apply(problem, theta_0, image_syn, label_syn, batches.long(), lr)
