"""Other tiles for the kernels of few instructions: whether results are right, and the time.

On sm_90 none of them spills. The tests run all of them, so `make launches` compiles them, and
`make gpu-carry` takes them along.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import product
from typing import NamedTuple

import torch
from contrastive_cases import Case, along, assert_gradients_along, exactly
from torch import Tensor

from mim4dd.reference import Reduce
from stages.arguments import parse
from stages.ceilings import seconds_of
from stages.records import run_cases
from stages.triage import compare_clip

DTYPE = torch.bfloat16
# Enough rows that these kernels are chosen on 132 multiprocessors, and a last tile that is short.
CHECKED, TIMED = 8464, 16384
PAIRED = "clip_loss gradient"
# What is asked for, for the tiles of a kind to be used: gradients of queries, keys, scale and bias.
WANTED = {
    "loss": [False, False, False, False],
    "rows": [True, False, False, False],
    "scale": [False, False, True, False],
    "queries": [False, True, False, False],
    "apart": [True, False, False, False],
    "apart by label": [True, False, False, False],
}
# Rows of a program, rows that it streams, and warps.
LARGE, LONG, SMALL = (128, 128, 8), (128, 64, 8), (64, 64, 4)
ALL = (LARGE, LONG, SMALL)
SHAPES = {
    ("loss", 64): ALL,
    ("loss", 128): ALL,
    ("loss", 256): ALL,
    ("rows", 64): ALL,
    ("rows", 128): ALL,
    ("scale", 64): ALL,
    ("scale", 128): ALL,
    ("queries", 64): ALL,
    ("queries", 128): ALL,
    ("apart", 256): (LONG,),
    ("apart by label", 256): (LONG,),
    (PAIRED, 64): ALL,
    (PAIRED, 128): (LONG, SMALL),
}
STAGES = (2, 3)
SHARED_BYTES = 227 * 1024  # that a program may have on sm_90


class Sizes(NamedTuple):
    """What tiles are made of: in a rehearsal Triton is imported after the command line is read."""

    own: int
    stream: int
    num_warps: int
    num_stages: int


def candidates() -> Iterator[tuple[str, int, Sizes]]:
    """Kind, columns and sizes."""
    for (kind, width), shapes in SHAPES.items():
        for (own, stream, warps), stages in product(shapes, STAGES):
            if 2 * width * (own + stages * stream) <= SHARED_BYTES:
                yield kind, width, Sizes(own, stream, warps, stages)


def name_of(kind: str, width: int, sizes: Sizes) -> str:
    """Of a case."""
    own, stream, warps, stages = sizes
    return f"{kind} D={width}: {own}x{stream}, {warps} warps, {stages} stages"


@contextmanager
def used(kind: str, width: int, sizes: Sizes, device: str) -> Iterator[bool]:
    """With these tiles in place of the present ones; whether they are the same."""
    from mim4dd.kernels import _paired, _single_positive
    from mim4dd.kernels._tiles import Tiles

    own, stream, *launch = sizes
    tiles, on = Tiles(own, stream, width, width, *launch), torch.device(device)
    if kind == PAIRED:
        table: dict = _paired.GRADIENT_TILES
        key: tuple = _paired.gradient_entry(width, _paired.capability(on))
    else:
        table = _single_positive.TILES
        key = _single_positive.entry(kind, width, _single_positive.capability(on))
    before = table[key]
    table[key] = tiles
    try:
        yield tiles == before
    finally:
        table[key] = before


def case_of(kind: str, width: int, device: str, rows: int) -> Case:
    """Rows of one layer, with positives by index or by label."""
    return Case((rows, rows, [width]), DTYPE, device, by_index=kind != "apart by label")


@lru_cache(maxsize=1)
def solved(kind: str, width: int, device: str, rows: int) -> tuple[Case, Tensor, list[Tensor]]:
    """A case, its losses, and the gradients that are wanted: the same for all tiles of a kind."""
    case = case_of(kind, width, device, rows)
    (loss, *_), _, gradients = exactly(case)
    wanted = zip(gradients, WANTED[kind][:-1], strict=True)
    return case, loss, [each for each, is_wanted in wanted if is_wanted]


def check(kind: str, width: int, device: str, rows: int) -> None:
    """Raise where losses or the wanted gradients are not those of float64."""
    if kind == PAIRED:
        compare_clip(rows, width, DTYPE, device)
        return
    case, true, gradients = solved(kind, width, device, rows)
    (loss, *_), found, _ = along(case, wanted=WANTED[kind])
    torch.testing.assert_close(loss.double(), true, rtol=1e-4, atol=1e-4)
    assert_gradients_along(found, gradients, case)


def call_of(kind: str, width: int, device: str, rows: int) -> Callable[[], object]:
    """What is timed: all that such a call launches."""
    from mim4dd.kernels import clip_loss

    case = case_of(kind, width, device, rows)
    if kind != PAIRED:
        return partial(along, case, Reduce.SUM, WANTED[kind])
    inputs = case.query[0], case.key[0], case.scale, False
    outputs = clip_loss.clip_loss(*inputs)
    upstream = torch.ones(2, rows, device=device).unbind()
    return partial(clip_loss.clip_loss_bwd, *inputs, *outputs, *upstream)


def measure(kind: str, width: int, sizes: Sizes, device: str, checked: int, timed: int) -> dict:
    """Milliseconds; none where a GPU has not the memory on chip."""
    from triton.runtime.errors import OutOfResources

    with used(kind, width, sizes, device) as present:
        try:
            check(kind, width, device, checked)
            seconds = seconds_of(call_of(kind, width, device, timed), device)
        except OutOfResources as error:
            return {"ms": None, "why": str(error)}
    return {"ms": 1e3 * seconds, "present": present}


def main() -> None:
    args = parse(__doc__)
    sizes = (CHECKED, TIMED)
    if args.rehearsal:
        from quick_interpreter import interpret_quickly

        interpret_quickly()
        sizes = (144, 144)
    wanted = list(candidates())[: 2 if args.rehearsal else None]
    run_cases(
        args.results,
        args.stage,
        [(name_of(*each), partial(measure, *each, args.device, *sizes)) for each in wanted],
    )


if __name__ == "__main__":
    main()
