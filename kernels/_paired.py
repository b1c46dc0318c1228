"""clip_loss where no logit is written to memory: rows of half precision, as they are compared.

The losses of both sides are two directions of one pass, that of _single_positive.py, and so are
the gradients of both: 12·N²·D operations in all, 4 more than with logits in memory, which is what
takes the time there. A row of one side and one of the other have shares of the two softmaxes that
they are in; the gradients' pass forms both from one similarity.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import JITFunction

from mim4dd.kernels._ahead_of_time import CAPABILITIES, Compilation, compilation
from mim4dd.kernels._arguments import Losses
from mim4dd.kernels._inputs import Layers, capability
from mim4dd.kernels._paired_passes import Shares, paired_gradient_pass, paired_sums_pass
from mim4dd.kernels._single_positive import (
    LOSSES,
    ONE_PASS,
    PLAIN,
    TILES,
    WIDTHS,
    entry,
    fills,
    users_of,
)
from mim4dd.kernels._single_positive_passes import LOG2_E
from mim4dd.kernels._tiles import Tiles, families
from mim4dd.reference import Critic

SIDES = 2  # queries and keys
# (D up to, least compute capability); of the losses' pass they are _single_positive's.
GRADIENT_TILES: dict[tuple[int, int], Tiles] = {
    (64, 80): Tiles(128, 64, 64, 64, 8, 2),
    (64, 90): Tiles(128, 128, 64, 64, 8, 2),
    (64, 100): Tiles(128, 64, 64, 64, 8, 2),
    (128, 80): Tiles(128, 64, 128, 128, 8, 2),
    (128, 90): Tiles(128, 128, 128, 128, 8, 2),
    (128, 100): Tiles(128, 64, 128, 128, 8, 2),
}


def serves(layers: Layers, normalize: bool) -> bool:
    """Whether these kernels are for this."""
    return fills(layers, Critic(normalize=normalize), ONE_PASS, SIDES)


def gradient_entry(D: int, on: int) -> tuple[int, int]:
    """Key of the entry of the newest capability not above ``on``."""
    width = next(each for each in WIDTHS if each >= D)
    return next((width, each) for each in families(on) if (width, each) in GRADIENT_TILES)


def losses(layers: Layers, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Launch: losses, shifts and the sums of exp(logit - shift), of queries and of keys, (2, N)."""
    (D,) = layers.sizes
    tiles = TILES[entry("loss", D, capability(scale.device))]
    loss, shift, total = scale.new_empty(3, SIDES, layers.N).unbind()
    with torch.cuda.device_of(scale):
        paired_sums_pass[(triton.cdiv(layers.N, tiles.BLOCK_OWN), SIDES)](
            layers.features,
            layers.table(D),
            scale,
            Losses(loss, None, None),
            shift,
            total,
            layers.N,
            PLAIN,
            layers.tiling(tiles),
            **tiles.launch(),
        )
    return loss, shift, total


def gradients(
    layers: Layers,
    scale: Tensor,
    factor: Tensor,  # (): scale over what the upstream gradients were multiplied by
    shift: Tensor,  # (2, N)
    of_sums: Tensor,  # (2, N): upstream gradients over the sums
    pair_weight: Tensor,  # (N,)
) -> tuple[Tensor, Tensor]:
    """Launch: gradients of queries and keys, (2, N, D), and parts of the scale's, (N,)."""
    (D,) = layers.sizes
    tiles = GRADIENT_TILES[gradient_entry(D, capability(scale.device))]
    rows = layers.query.new_empty(SIDES, layers.N, D)
    of_scale = torch.empty_like(pair_weight)
    with torch.cuda.device_of(scale):
        paired_gradient_pass[(triton.cdiv(layers.N, tiles.BLOCK_OWN), SIDES)](
            layers.features,
            layers.table(D),
            scale,
            factor,
            Shares(shift * -LOG2_E.value, of_sums),
            pair_weight,
            rows,
            of_scale,
            layers.N,
            layers.tiling(tiles),
            **tiles.launch(),
        )
    return rows, of_scale


def compilations() -> Iterator[Compilation]:
    """Both passes in the tiles of every entry, for the GPUs that take it."""
    for key, tiles in TILES.items():
        if key[0] == "loss" and key[1] <= ONE_PASS:
            constants = dict.fromkeys(("losses.lse", *LOSSES)) | {"form": PLAIN}
            yield _compilation("losses", paired_sums_pass, key[1], tiles, users_of(key), constants)
    for key, tiles in GRADIENT_TILES.items():
        users = [each for each in CAPABILITIES if gradient_entry(key[0], each) == key]
        yield _compilation("gradients", paired_gradient_pass, key[0], tiles, users, {})


def _compilation(
    name: str,
    kernel: JITFunction,
    width: int,
    tiles: Tiles,
    users: Sequence[int],
    constants: dict[str, Any],
) -> Compilation:
    narrow = ("features.query", "features.key", "grad_ptr")
    constants = {**constants, "tiling": tiles.tiling(True, 16, "ieee", False), **tiles.launch()}
    name = f"paired {name} D<={width}"
    return compilation(name, kernel, torch.bfloat16, narrow, constants, tuple(users))
