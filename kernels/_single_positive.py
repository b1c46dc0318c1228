"""InfoNCE of one positive by index, where nothing is left out: few instructions for each logit.

The plain case, for operands of half precision, whose products the tensor cores make faster than
other kernels' arithmetic around each logit can follow. Here

- the loss and the gradient of the queries come from one pass, an attention whose values are the
  keys, so that the logits are made twice in all and not three times: 8·N·M·D operations; rows of
  more than 128 columns leave that pass no registers, and take one more;
- exponentials are of base 2, and logits are scaled and shifted in one instruction. It rounds the
  difference alone, and the shift, rounded before, is the same in all that is added up or divided:
  logits of 1e4 keep their digits;
- 0 · similarity, added to its exponential, is what makes a row with an infinite logit NaN. The
  gradient of the queries has it for nothing: no weight makes an infinite key finite;
- the positive's place is looked for only in the tiles that the positives of a program lie in, and
  its weight, minus the negatives' share, is formed apart from the others'. So gradients have their
  digits near p = 1.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime import JITFunction

from mim4dd.kernels._ahead_of_time import CAPABILITIES, EVERY_CASE, Compilation, compilation
from mim4dd.kernels._arguments import Form, Groups, Losses
from mim4dd.kernels._inputs import Found, Layers, Queries, capability, form_of, num_multiprocessors
from mim4dd.kernels._rows import divisor
from mim4dd.kernels._single_positive_passes import (
    STRETCH,
    QueryGradients,
    Statistics,
    keys_pass,
    queries_pass,
)
from mim4dd.kernels._single_positive_wide import queries_gradient_pass
from mim4dd.kernels._tiles import WIDE_LOADS, Tiles, families, operands
from mim4dd.reference import Critic

PLAIN = Form("out", False, False)
NO_GROUPS = Groups(*[None] * 7)

# (pass, D up to, least compute capability). Over keys a program has in registers what is wanted:
# the losses' sums alone, the rows' gradient too, or the scale's as well; or ("apart") the gradients
# without the sums. Those by label are stored row by row, whose addresses take registers.
TILES: dict[tuple[str, int, int], Tiles] = {
    ("loss", 64, 80): Tiles(128, 64, 64, 64, 8, 3),
    ("loss", 64, 90): Tiles(128, 128, 64, 64, 8, 3),
    ("loss", 128, 80): Tiles(128, 64, 128, 128, 8, 2),
    ("loss", 128, 90): Tiles(128, 128, 128, 128, 8, 2),
    ("rows", 64, 80): Tiles(128, 64, 64, 64, 8, 3),
    ("rows", 64, 90): Tiles(128, 128, 64, 64, 8, 3),
    ("rows", 128, 80): Tiles(128, 32, 128, 128, 8, 2),
    ("rows", 128, 90): Tiles(128, 128, 128, 128, 8, 2),
    ("scale", 64, 80): Tiles(128, 64, 64, 64, 8, 3),
    ("scale", 64, 90): Tiles(128, 128, 64, 64, 8, 3),
    ("scale", 64, 100): Tiles(128, 64, 64, 64, 8, 3),
    ("scale", 128, 80): Tiles(128, 32, 128, 128, 8, 2),
    ("scale", 128, 90): Tiles(128, 128, 128, 128, 8, 2),
    ("scale", 128, 100): Tiles(128, 32, 128, 128, 8, 2),
    ("queries", 64, 80): Tiles(128, 128, 64, 64, 8, 2),
    ("queries", 64, 90): Tiles(128, 128, 64, 64, 8, 3),
    ("queries", 128, 80): Tiles(128, 128, 128, 128, 8, 2),
    ("loss", 256, 80): Tiles(128, 32, 256, 256, 8, 2),
    ("loss", 256, 90): Tiles(128, 128, 256, 256, 8, 2),
    ("apart", 256, 80): Tiles(64, 64, 256, 256, 8, 2),
    ("apart", 256, 90): Tiles(128, 64, 256, 256, 8, 2),
    ("apart by label", 256, 80): Tiles(64, 64, 256, 256, 8, 2),
    ("apart by label", 256, 90): Tiles(128, 64, 256, 256, 8, 2),
    ("apart by label", 256, 100): Tiles(64, 64, 256, 256, 8, 2),
    ("queries", 256, 80): Tiles(64, 64, 256, 256, 8, 2),
    ("queries", 256, 90): Tiles(64, 128, 256, 256, 8, 2),
    ("queries", 256, 100): Tiles(64, 64, 256, 256, 8, 2),
}
WIDTHS = (64, 128, 256)
ONE_PASS = 128  # columns of which losses and the queries' gradient fit the registers together
LONGEST_STRIDE = 2**24  # a tile's addresses are 32-bit numbers from its first row on


def serves(layers: Layers, queries: Queries, critic: Critic) -> bool:
    """Whether these kernels are for this: the plain case, with work for most of the GPU."""
    if queries.key_labels is not None or queries.excluded is not None:
        return False
    return fills(layers, critic, max(WIDTHS))


def fills(layers: Layers, critic: Critic, widest: int, sides: int = 1) -> bool:
    """Whether the tiles here are for these rows, and there are enough of them in a launch."""
    if form_of(critic) != PLAIN or critic.normalize:
        return False
    if operands(layers.query.dtype, "ieee") != "half" or not (layers.N and layers.M):
        return False
    strides = (*layers.query_strides, *layers.key_strides)
    if max(layers.sizes) > widest or max(strides) >= LONGEST_STRIDE:
        return False
    if divisor(*layers.sizes, *strides) < WIDE_LOADS:
        return False
    programs = triton.cdiv(min(layers.N, layers.M), STRETCH.value) * len(layers.sizes) * sides
    return 2 * programs > num_multiprocessors(layers.query.device)


def entry(kind: str, D: int, capability: int) -> tuple[str, int, int]:
    """Key of the entry of the newest capability not above ``capability``."""
    width = next(each for each in WIDTHS if each >= D)
    keys = [(kind, width, family) for family in families(capability)]
    return next(key for key in keys if key in TILES)


def tiles_for(kind: str, layers: Layers) -> Tiles:
    """On the GPU that they are on."""
    return TILES[entry(kind, max(layers.sizes), capability(layers.query.device))]


class Outputs(NamedTuple):
    """What a launch writes, layers packed one after another; None where it is not wanted."""

    loss: Tensor  # (L, N)
    lse: Tensor  # (L, N)
    query: Tensor | None  # layers of (N, D)
    key: Tensor | None  # layers of (M, D)
    scale: Tensor | None  # (L, N): parts of the sum

    @classmethod
    def of(cls, layers: Layers, queries: Queries, gradients: Sequence[bool]) -> "Outputs":
        """Not written yet."""
        want_query, want_key, want_scale, _ = gradients
        N, M, L, new = layers.N, layers.M, len(layers.sizes), queries.weight.new_empty
        return cls(
            new(L, N),
            new(L, N),
            new(N * sum(layers.sizes)) if want_query else None,
            new(M * sum(layers.sizes)) if want_key else None,
            new(L, N) if want_scale else None,
        )

    def apart(self, layers: Layers) -> bool:
        """Whether the queries' gradients are wanted, and of rows too wide for the losses' pass."""
        return max(layers.sizes) > ONE_PASS and any(
            each is not None for each in (self.query, self.scale)
        )

    def tiles(self, layers: Layers) -> tuple[Tiles, Tiles]:
        """Those of the losses' pass over keys, and of the one over queries."""
        kind = "loss" if self.query is None else "rows"
        kind = kind if self.scale is None else "scale"
        kind = "loss" if self.apart(layers) else kind
        return tiles_for(kind, layers), tiles_for("queries", layers)

    def found(self, layers: Layers) -> tuple[Tensor, Tensor, list[Found]]:
        """Loss and lse, and the gradients by layer."""
        sides = (self.query, layers.N), (self.key, layers.M)
        by_layer = (unpacked(rows, count, layers.sizes) for rows, count in sides)
        none = [None] * len(layers.sizes)
        by_number = none if self.scale is None else self.scale.sum(1).unbind()
        gradients = [Found(*each) for each in zip(*by_layer, by_number, strict=True)]
        return self.loss, self.lse, gradients


def launch(
    layers: Layers, queries: Queries, gradients: Sequence[bool], share: Tensor | None
) -> tuple[Tensor, Tensor, list[Found]]:
    """Launch: loss and lse, each (L, N), and the wanted gradients of the summed losses by share."""
    outputs = Outputs.of(layers, queries, gradients)
    N, M, L, sizes = layers.N, layers.M, len(layers.sizes), layers.sizes
    scales = queries.scales._replace(bias=None, stride_bias=0)
    apart = outputs.apart(layers)
    known = apart or outputs.key is not None
    statistics = _new_statistics(layers, queries) if known else Statistics(*[None] * 6)
    wanted = QueryGradients(outputs.query, outputs.scale)
    over_keys, over_queries = outputs.tiles(layers)
    with torch.cuda.device_of(outputs.loss):
        keys_pass[(triton.cdiv(N, over_keys.BLOCK_OWN), L)](
            layers.features,
            layers.table(max(sizes)),
            queries.pairs(M),
            scales,
            queries.weight,
            share,
            Losses(outputs.loss, outputs.lse, None),
            statistics,
            QueryGradients(None, None) if apart else wanted,
            PLAIN,
            layers.tiling(over_keys),
            **over_keys.launch(),
        )
        if statistics.rows is not None:
            clean = layers._replace(query=statistics.rows, query_strides=sizes)
        if apart:
            tiles = tiles_for("apart", layers)
            queries_gradient_pass[(triton.cdiv(N, tiles.BLOCK_OWN), L)](
                clean.features,
                clean.table(max(sizes)),
                queries.pairs(M),
                scales,
                share,
                statistics._replace(rows=None, stretches=None),
                wanted,
                clean.tiling(tiles),
                **tiles.launch(),
            )
        if outputs.key is not None:
            queries_pass[(triton.cdiv(M, over_queries.BLOCK_OWN), L)](
                clean.features,
                clean.table(max(sizes)),
                queries.pairs(M),
                NO_GROUPS,
                scales,
                share,
                statistics,
                outputs.key,
                clean.tiling(over_queries),
                **over_queries.launch(),
            )
    return outputs.found(layers)


def _new_statistics(layers: Layers, queries: Queries) -> Statistics:
    N, L, stretch = layers.N, len(layers.sizes), STRETCH.value
    integers = {"dtype": torch.int32, "device": queries.labels.device}
    return Statistics(
        torch.empty(N, **integers),
        layers.query.new_empty(N * sum(layers.sizes)),
        *queries.weight.new_empty(3, L, N),
        torch.full((2, triton.cdiv(layers.M, stretch)), triton.cdiv(N, stretch), **integers),
    )


def unpacked(rows: Tensor | None, count: int, sizes: tuple[int, ...]) -> list[Tensor | None]:
    """The layers of packed rows."""
    if rows is None:
        return [None] * len(sizes)
    parts = rows.split([count * D for D in sizes])
    return [part.view(count, D) for part, D in zip(parts, sizes, strict=True)]


ABSENT = ("pairs.key_labels", "pairs.excluded", "scales.bias")
LOSSES = ("losses.positives",)
STATISTICS = tuple(f"statistics.{field}" for field in Statistics._fields)
UNGROUPED = tuple(f"groups.{field}" for field in Groups._fields)
# The pass over keys, by what is wanted: its tiles, and what a launch for that leaves out.
OVER_KEYS = {
    "loss": ("loss", (*STATISTICS, "gradients.rows", "gradients.scale", "share_ptr")),
    "key": ("loss", ("gradients.rows", "gradients.scale")),
    "query": ("rows", (*STATISTICS, "gradients.scale")),
    "query and key": ("rows", ("gradients.scale",)),
    "scale": ("scale", (*STATISTICS, "gradients.rows")),
    "query and scale": ("scale", STATISTICS),
    "key and scale": ("scale", ("gradients.rows",)),
    "all": ("scale", ()),
}


def users_of(key: tuple[str, int, int]) -> list[int]:
    """The GPUs that take an entry's tiles."""
    kind, width, _ = key
    return [each for each in CAPABILITIES if entry(kind, width, each) == key]


def constants_of(tiles: Tiles, absent: Iterable[str], over_keys: bool) -> dict[str, Any]:
    """What a program of a pass is compiled for."""
    return {
        **dict.fromkeys(absent),
        **({"form": PLAIN} if over_keys else {}),
        "tiling": tiles.tiling(True, 16, "ieee", False),
        **tiles.launch(),
    }


# The same of the pass for the queries' gradients alone.
APART = {
    "query": ("gradients.scale",),
    "scale": ("gradients.rows",),
    "query and scale": (),
}


class Passes(NamedTuple):
    """The kernels of one kind of labels."""

    over_keys: JITFunction
    apart: JITFunction
    kind_apart: str  # of TILES


def cases_of(
    kind: str, passes: Passes, wanted: Mapping[str, tuple[str, tuple[str, ...]]]
) -> list[tuple[str, JITFunction, tuple[str, ...]]]:
    """Name, kernel and absent arguments of what tiles are for; what takes most comes last."""
    if kind == "queries":
        return [("queries", queries_pass, ())]
    if kind == passes.kind_apart:
        return [(f"keys for {each} apart", passes.apart, out) for each, out in APART.items()]
    return [
        (f"keys for {each}", passes.over_keys, (*LOSSES, *out))
        for each, (of, out) in wanted.items()
        if of == kind
    ]


def compilations() -> Iterator[Compilation]:
    """The tiles of every entry: all that a launch may want, and for each GPU what takes most."""
    passes = Passes(keys_pass, queries_gradient_pass, "apart")
    unused = {
        queries_pass: UNGROUPED,
        queries_gradient_pass: ("statistics.rows", "statistics.stretches"),
        keys_pass: (),
    }
    for (kind, width, least), tiles in TILES.items():
        users = users_of((kind, width, least))
        cases = cases_of(kind, passes, OVER_KEYS)
        for name, kernel, absent in cases:
            most = name == cases[-1][0]
            left_out = (*ABSENT, *unused[kernel], *absent)
            constants = constants_of(tiles, left_out, kernel is keys_pass)
            for dtype in (torch.bfloat16, torch.float16):
                # Of what takes less, and of the other GPUs, one dtype: they take the same.
                both = most + (dtype == torch.bfloat16)
                capabilities = tuple(c for c in users if both > (c not in EVERY_CASE))
                yield compilation(
                    f"single positive, over {name} D<={width}",
                    kernel,
                    dtype,
                    ("features.query", "features.key", "statistics.rows"),
                    constants,
                    capabilities,
                )
