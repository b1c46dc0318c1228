"""Other ways to the same losses, as functions of (query, key, *labels), and the pip name of each.

The versions are in peers.txt. What is not installed is left out and named once; nothing here is
imported before it is called.
"""

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peers import peer
from torch import Tensor

TEMPERATURE = 0.1


class Provider(NamedTuple):
    """One way to a loss."""

    loss: Callable[..., Tensor]
    pair_values: float = 0  # numbers it stores per query-key pair at its peak, forward+backward
    normalizes: bool = False  # scales rows to unit length, which changes the gradients
    error: float | None = None  # relative error allowed; None: no worse than plain PyTorch
    module: str = "torch"
    package: str = "torch"
    needs_gpu: bool = False


missing: dict[str, str] = {}  # package: what to print


def installed(providers: dict[str, Provider]) -> dict[str, Provider]:
    """Those that can run here; the packages of the others go to ``missing``."""
    found = {}
    for name, provider in providers.items():
        if provider.needs_gpu and not torch.cuda.is_available():
            continue
        if is_installed(provider.module, provider.package):
            found[name] = provider
    return found


def is_installed(module: str, package: str) -> bool:
    """Whether it can be imported; if not, its package goes to ``missing``."""
    if find_spec(module) is not None:
        return True
    command = f"pip install --no-deps {package}"
    missing[package] = f"left out, not installed: {package} ({command})"
    return False


def compiled(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.compile for the shapes of each case."""
    return torch.compile(loss, dynamic=False, fullgraph=True)


def cross_entropy(query, key, target, **options):
    # The scale on the smaller operand: an (N, M) pass less than on the logits.
    return F.cross_entropy(query / TEMPERATURE @ key.T, target, **options)


def sup_con(query, key, labels, key_labels):
    logits = query / TEMPERATURE @ key.T
    positive = (labels[:, None] == key_labels).to(logits.dtype)
    attraction = (logits * positive).sum(1) / positive.sum(1)
    return (logits.logsumexp(1) - attraction).mean()


def linear_cross_entropy(query, key, target):
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(query / TEMPERATURE, key, target, options=options)


def info_nce_pytorch(query, key, *_):
    return importlib.import_module("info_nce").info_nce(query, key, temperature=TEMPERATURE)


def liger(query, key, target):
    ops = importlib.import_module("liger_kernel.ops.fused_linear_scaled_cross_entropy")
    function = ops.LigerFusedLinearScaledCrossEntropyFunction
    losses = function.apply(query, key, target, TEMPERATURE)
    return (losses[0] if isinstance(losses, tuple) else losses).mean()


def cut_cross_entropy(query, key, target, **options):
    module = importlib.import_module("cut_cross_entropy")
    return module.linear_cross_entropy(query / TEMPERATURE, key, target, **options)


def inf_cl(query, key, target):
    module = importlib.import_module("inf_cl")
    head = min(256, query.shape[1])
    return module.cal_flash_loss(query, key, target, 1 / TEMPERATURE, head).mean()


def open_clip(query, key, *_):
    return peer("open_clip.loss", past=["open_clip"]).ClipLoss()(query, key, 1 / TEMPERATURE)


def lightly(query, key, *_):
    past = ["lightly.loss", "lightly.models", "lightly.models.modules", "lightly.models.utils"]
    module = peer("lightly.loss.ntx_ent_loss", past)
    return module.NTXentLoss(temperature=TEMPERATURE)(query, key)


def both_directions(query, key, target):
    logits = query / TEMPERATURE @ key.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pytorch_metric_learning(query, key, labels, key_labels):
    losses = importlib.import_module("pytorch_metric_learning.losses")
    # A clone: where ref_labels is labels, the diagonal is taken for the queries themselves.
    loss = losses.SupConLoss(temperature=TEMPERATURE)
    return loss(query, labels, ref_emb=key, ref_labels=key_labels.clone())


_CUT = {"module": "cut_cross_entropy", "package": "cut-cross-entropy"}

# A positive per query, on the diagonal: the key that `target` names.
SINGLE = {
    "torch": Provider(cross_entropy, 3),
    "torch.compile": Provider(compiled(cross_entropy), 2),
    "info-nce-pytorch": Provider(
        info_nce_pytorch, 3, normalizes=True, module="info_nce", package="info-nce-pytorch"
    ),
    "liger-kernel": Provider(liger, module="liger_kernel", package="liger-kernel"),
}
if hasattr(torch.nn, "LinearCrossEntropyOptions"):
    SINGLE["F.linear_cross_entropy"] = Provider(linear_cross_entropy)
if torch.cuda.is_available():
    SINGLE |= {
        "cce": Provider(lambda *inputs: cut_cross_entropy(*inputs, impl="cce"), **_CUT),
        "cce_exact": Provider(
            lambda *inputs: cut_cross_entropy(*inputs, impl="cce", filter_eps=None), **_CUT
        ),
        # Multiplies in TF32 whatever it is given.
        "inf-cl": Provider(inf_cl, error=1e-2, module="inf_cl", package="inf-cl", needs_gpu=True),
    }
else:
    SINGLE["cut-cross-entropy"] = Provider(
        lambda *inputs: cut_cross_entropy(*inputs, impl="torch_compile"), 2, **_CUT
    )

LABELLED = {
    "torch": Provider(sup_con, 5),
    "torch.compile": Provider(compiled(sup_con), 2),
    "pytorch-metric-learning": Provider(
        pytorch_metric_learning,
        12,
        normalizes=True,
        module="pytorch_metric_learning",
        package="pytorch-metric-learning",
    ),
}
CLIP = {
    "torch": Provider(both_directions, 4),
    "torch.compile": Provider(compiled(both_directions), 4),
    "open_clip": Provider(open_clip, 4, module="open_clip", package="open-clip-torch"),
}
NT_XENT = {
    "lightly": Provider(lightly, 18, normalizes=True, module="lightly", package="lightly"),
}
