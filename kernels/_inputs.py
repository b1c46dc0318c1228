"""What the launchers make of an op's arguments."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from mim4dd.kernels._arguments import Features, Form, Norms, Pairs, Scales, Tiling, Upstream
from mim4dd.kernels._rows import count, divisor, layer_table, normalize, pack, pairs_of
from mim4dd.kernels._tiles import (
    RESIDENT_D,
    TILES,
    WIDE_LOADS,
    Tiles,
    entry,
    operands,
    precision_of,
)
from mim4dd.reference import IGNORE, Critic, Kind


class Found(NamedTuple):
    """A layer's gradients, as far as wanted."""

    query: Tensor | None = None
    key: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None


class Queries(NamedTuple):
    """What all layers share."""

    labels: Tensor  # (N,)
    key_labels: Tensor | None  # (M,)
    excluded: Tensor | None  # (K, N and what fills a tile) int32: neighbours of a query beside it
    weight: Tensor  # (N,)
    scale: Tensor  # ()
    raised: Tensor  # (): scale of the negatives
    bias: Tensor | None  # () or (N,)
    stride_bias: int

    def pairs(self, M: int) -> Pairs:
        """Those with ``M`` keys."""
        return pairs_of(self.labels, self.key_labels, self.excluded, M)

    @property
    def scales(self) -> Scales:
        """What makes their logits."""
        return Scales(self.scale, self.raised, self.bias, self.stride_bias)

    def without_ignored(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Rows for a product that has no mask: what is ignored may hold NaN, and is made 0."""
        query = query.masked_fill((self.labels == IGNORE)[:, None], 0)
        if self.key_labels is not None:
            key = key.masked_fill((self.key_labels == IGNORE)[:, None], 0)
        return query, key


def prepare(
    key: Tensor,
    labels: Tensor,
    key_labels: Tensor | None,
    excluded: Tensor | None,
    logit_scale: Tensor,
    bias: Tensor | None,
    critic: Critic,
    weight: Tensor | None = None,
) -> Queries:
    """Count the positives where ``weight`` is not known yet, or the bias depends on them."""
    labels = labels.to(torch.int64).contiguous()
    key_labels = None if key_labels is None else key_labels.to(torch.int64).contiguous()
    if excluded is not None:
        fill = -len(labels) % LONGEST_TILE
        excluded = F.pad(excluded.T.to(torch.int32), (0, fill), value=IGNORE).contiguous()
    stride_bias = 0 if bias is None or bias.dim() == 0 else 1
    if weight is None or (critic.kind == Kind.NCE and bias is None):
        wide = torch.promote_types(key.dtype, torch.float32)
        weight, by_count = count(labels, key_labels, excluded, len(key), critic, wide)
        if bias is None:
            bias, stride_bias = by_count, 1
    raised = logit_scale + critic.hardness if critic.hardness else logit_scale
    return Queries(
        labels, key_labels, excluded, weight.contiguous(), logit_scale, raised, bias, stride_bias
    )


def form_of(critic: Critic) -> Form:
    """The critic as kernels know it; refuses a kind that is none."""
    return Form(Kind(critic.kind).name.lower(), critic.decoupled, critic.hardness != 0)


def upstream_of(grad_loss: Tensor | None, grad_lse: Tensor | None) -> Upstream:
    """Of gradients (L, N), or (N,) of one layer."""
    strides = [
        (0, 0) if grad is None else (0, *grad.stride())[-2:] for grad in (grad_loss, grad_lse)
    ]
    (layer_loss, stride_loss), (layer_lse, stride_lse) = strides
    return Upstream(grad_loss, grad_lse, stride_loss, stride_lse, layer_loss, layer_lse)


LONGEST_TILE = 128  # of queries, in any kernel
# A weight is at most twice the upstream gradient, and float16 ends at 65504.
LARGEST_UPSTREAM = 2.0**14


def boosted(
    rows: Tensor, grad_loss: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Upstream gradients as large as weights of float16 allow, and by what they were multiplied.

    In float16 only: the weights are rounded to it, and those of a mean over thousands of queries
    would vanish. The factor stays on the device.
    """
    if rows.dtype != torch.float16:
        return grad_loss, grad_lse, None
    present = grad_loss.abs().amax()
    if grad_lse is not None:
        present = torch.maximum(present, grad_lse.abs().amax())
    boost = LARGEST_UPSTREAM / present.clamp(min=1e-30)
    return grad_loss * boost, None if grad_lse is None else grad_lse * boost, boost


class Layers(NamedTuple):
    """All layers of one launch, packed, brought near unit length where they are normalised."""

    query: Tensor
    key: Tensor
    N: int
    M: int
    sizes: tuple[int, ...]
    query_strides: tuple[int, ...]
    key_strides: tuple[int, ...]
    query_norms: Tensor | None = None  # (2, L, N)
    key_norms: Tensor | None = None  # (2, L, M)

    def table(self, slab: int) -> Tensor:
        """What a program looks its layer up in."""
        strides = (self.query_strides, self.key_strides)
        return layer_table(self.sizes, *strides, slab, self.query.device)

    @property
    def features(self) -> Features:
        """The rows."""
        return Features(self.query, self.key)

    @property
    def norms(self) -> Norms:
        """What makes them unit rows."""
        return Norms(self.query_norms, self.key_norms)

    def options(self, kernel: str, several: bool = False) -> tuple[Tiling, dict[str, int | bool]]:
        """What a kernel is compiled for, and how to launch it."""
        D = max(self.sizes)
        dtype, precision = self.query.dtype, precision_of(self.query.dtype)
        multiplier = operands(dtype, precision)
        key = entry(kernel, multiplier, D, capability(self.query.device))
        if key == ("gradient", "half", RESIDENT_D, 90) and self.divisor < WIDE_LOADS:
            key = (*key[:3], 80)  # of more rows, addresses of single numbers would spill
        chosen = TILES[key]
        if (kernel, multiplier) == ("forward", "fma") and (self.divisor % 4 or self.N == 1):
            # Of 8, addresses of single numbers spill; so does one query: Triton compiles a 1 in.
            chosen = chosen._replace(num_warps=16)
        elif several:
            chosen = chosen.for_several()
        return self.tiling(chosen), chosen.launch()

    def tiling(self, chosen: Tiles) -> Tiling:
        """What a kernel of these tiles is compiled for."""
        precision = precision_of(self.query.dtype)
        half = operands(self.query.dtype, precision) == "half"
        resident = half and max(self.sizes) <= chosen.BLOCK_K
        return chosen.tiling(resident, self.divisor, precision, not self.query.is_cuda)

    @property
    def divisor(self) -> int:
        """Of columns and strides."""
        return divisor(*self.sizes, *self.query_strides, *self.key_strides)


def packed(query: Sequence[Tensor], key: Sequence[Tensor], critic: Critic) -> Layers:
    """Pack the layers; normalising copies the rows anyway."""
    flat_query, query_strides = pack(query)
    flat_key, key_strides = pack(key)
    sizes = tuple(rows.shape[1] for rows in query)
    N, M = len(query[0]), len(key[0])
    layers = Layers(flat_query, flat_key, N, M, sizes, query_strides, key_strides)
    if not critic.normalize:
        return layers
    table, multiple = layers.table(max(sizes)), divisor(*sizes, *query_strides, *key_strides)
    scaled_query, query_norms = normalize(flat_query, table, sizes, N, False, multiple)
    scaled_key, key_norms = normalize(flat_key, table, sizes, M, True, multiple)
    return Layers(scaled_query, scaled_key, N, M, sizes, sizes, sizes, query_norms, key_norms)


@functools.cache
def capability(device: torch.device) -> int:
    """90 for sm_90; the oldest where there is no GPU."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    """How many programs run at once at least; the interpreter runs one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def split(programs: int, stream: int, block: int, device: torch.device) -> tuple[int, int]:
    """Into how many parts to split what is streamed over, and the rows of each part.

    Only where most of the GPU would idle; then each multiprocessor gets two programs.
    """
    steps = triton.cdiv(stream, block)
    idle = num_multiprocessors(device) // programs
    splits = 1 if idle < 2 else min(2 * idle, steps)
    per_split = triton.cdiv(steps, splits) * block
    return triton.cdiv(stream, per_split), per_split
