"""SupCon's loss by label ("out"), where nothing is left out: few instructions for each logit.

Queries and keys are sorted by their labels first. So the positives of the queries of a program lie
side by side, and only the tiles that hold them compare anything; all others are those of
_single_positive.py, whose tiles and second pass these are. Sorting and gathering take N + M rows,
the losses N·M pairs.

The tiles with positives, a share of about 1 / classes, take part in two loops: of their sums, and
of the queries' gradient, for which p - y is formed in full precision once the sums are known.
"""

from collections.abc import Iterator, Sequence

import torch
import triton
from torch import Tensor

from mim4dd.kernels._ahead_of_time import EVERY_CASE, Compilation, compilation
from mim4dd.kernels._arguments import Groups, Losses
from mim4dd.kernels._grouped_passes import grouped_keys_pass
from mim4dd.kernels._grouped_wide import grouped_gradient_pass
from mim4dd.kernels._inputs import Found, Layers, Queries
from mim4dd.kernels._single_positive import (
    ONE_PASS,
    PLAIN,
    TILES,
    WIDTHS,
    Outputs,
    Passes,
    cases_of,
    constants_of,
    fills,
    tiles_for,
    unpacked,
    users_of,
)
from mim4dd.kernels._single_positive_passes import QueryGradients, Statistics, queries_pass
from mim4dd.reference import Critic

_LAST = torch.iinfo(torch.int64).max
_SIGN = torch.iinfo(torch.int64).min


def serves(layers: Layers, queries: Queries, critic: Critic) -> bool:
    """Whether these kernels are for this: labels of both sides, with work for most of the GPU."""
    if queries.key_labels is None or queries.excluded is not None:
        return False
    return fills(layers, critic, max(WIDTHS))


def groups_of(labels: Tensor, key_labels: Tensor) -> Groups:
    """Both sides sorted by label, what takes no part behind; the host waits for nothing."""
    # Of the sign bit turned, IGNORE, which is -1, is the largest number.
    sorted_labels, query_order = (labels ^ _SIGN).sort(stable=True)
    sorted_keys, key_order = (key_labels ^ _SIGN).sort(stable=True)
    places = [
        torch.searchsorted(among, values, right=right, out_int32=True)
        for among, values in ((sorted_keys, sorted_labels), (sorted_labels, sorted_keys))
        for right in (False, True)
    ]
    counts = torch.stack([(side != _LAST).sum() for side in (sorted_labels, sorted_keys)])
    return Groups(query_order, key_order, *places, counts.to(torch.int32))


def launch(
    layers: Layers, queries: Queries, gradients: Sequence[bool], share: Tensor | None
) -> tuple[Tensor, Tensor, list[Found]]:
    """Launch: loss and lse, each (L, N), and the wanted gradients of the summed losses by share."""
    outputs = Outputs.of(layers, queries, gradients)
    N, M, L, sizes = layers.N, layers.M, len(layers.sizes), layers.sizes
    assert queries.key_labels is not None
    groups = groups_of(queries.labels, queries.key_labels)
    ordered = layers._replace(
        query=_gathered(layers.query, groups.query_order, sizes),
        key=_gathered(layers.key, groups.key_order, sizes),
        query_strides=sizes,
        key_strides=sizes,
    )
    scales = queries.scales._replace(bias=None, stride_bias=0)
    apart = outputs.apart(layers)
    known = apart or outputs.key is not None
    numbers = queries.weight.new_empty(3, L, N).unbind() if known else (None, None, None)
    statistics = Statistics(None, None, *numbers, None)
    wanted = QueryGradients(outputs.query, outputs.scale)
    over_keys, over_queries = outputs.tiles(layers)
    shared = ordered.features, ordered.table(max(sizes)), queries.pairs(M), groups, scales
    with torch.cuda.device_of(outputs.loss):
        grouped_keys_pass[(triton.cdiv(N, over_keys.BLOCK_OWN), L)](
            *shared,
            queries.weight,
            share,
            Losses(outputs.loss, outputs.lse, None),
            statistics,
            QueryGradients(None, None) if apart else wanted,
            PLAIN,
            ordered.tiling(over_keys),
            **over_keys.launch(),
        )
        if apart:
            tiles = tiles_for("apart by label", layers)
            grouped_gradient_pass[(triton.cdiv(N, tiles.BLOCK_OWN), L)](
                *shared,
                queries.weight,
                share,
                statistics,
                wanted,
                ordered.tiling(tiles),
                **tiles.launch(),
            )
        if outputs.key is not None:
            queries_pass[(triton.cdiv(M, over_queries.BLOCK_OWN), L)](
                *shared,
                share,
                statistics,
                outputs.key,
                ordered.tiling(over_queries),
                **over_queries.launch(),
            )
    return outputs.found(layers)


def _gathered(rows: Tensor, order: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Packed layers in another order."""
    if len(sizes) == 1:
        return rows.index_select(0, order)
    parts = unpacked(rows, len(order), sizes)
    return torch.cat([part.index_select(0, order).view(-1) for part in parts if part is not None])


ABSENT = ("pairs.excluded", "scales.bias")
BY_PLACE = ("statistics.labels", "statistics.rows", "statistics.stretches")
NUMBERS = ("statistics.shift", "statistics.log_sum", "statistics.rest")
# As in _single_positive.OVER_KEYS. What takes most comes last.
OVER_KEYS = {
    "loss": ("loss", (*NUMBERS, "gradients.rows", "gradients.scale", "share_ptr")),
    "key": ("loss", ("gradients.rows", "gradients.scale")),
    "query and key": ("rows", ("gradients.scale",)),
    "all": ("scale", ()),
}


def compilations() -> Iterator[Compilation]:
    """The tiles of every entry, for each GPU with what takes most; and losses alone."""
    passes = Passes(grouped_keys_pass, grouped_gradient_pass, "apart by label")
    for (kind, width, least), tiles in TILES.items():
        users = users_of((kind, width, least))
        cases = cases_of(kind, passes, OVER_KEYS)
        for name, kernel, absent in cases:
            if kind == "loss" and width < ONE_PASS:
                continue
            most = (kind != "loss" or width > ONE_PASS) and name == cases[-1][0]
            yield compilation(
                f"grouped, over {name} D<={width}",
                kernel,
                torch.bfloat16,
                ("features.query", "features.key"),
                constants_of(tiles, (*ABSENT, *BY_PLACE, *absent), kernel is grouped_keys_pass),
                tuple(c for c in users if most or c in EVERY_CASE),
            )
