"""Predict what the GPU kernels take on an H200, without one, by counting what was compiled.

    python bench/roofline.py [--measured bench/results/gpu-…/results.jsonl]

A prediction, not a measurement: the table goes into docs/roofline.md, where what is assumed stands
too. The last column is what `make gpu` measured, and empty without its file.
"""

import argparse
import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import resources
import sass
from stages.records import OK, Results

from mim4dd.kernels._arguments import Tiling
from mim4dd.kernels._paired import SIDES

N = 16384  # queries, and as many keys
CLASSES = 10  # of SupCon
CAPABILITY = 90


class Gpu(NamedTuple):
    """What bounds a kernel; docs/roofline.md names the sources."""

    multiprocessors: int = 132
    clock: float = 1.83e9  # hertz
    bandwidth: float = 4.8e12  # bytes a second
    issued: float = 4  # warp instructions a clock and multiprocessor
    special: float = 16  # exponentials likewise, of single threads
    flop: float = 4096  # of products of half precision, likewise
    registers: int = 65536  # of a multiprocessor
    shared_bytes: int = 228 * 1024
    reserved_bytes: int = 1024  # of those, for each block
    threads: int = 2048
    cublas: float = 0.8  # share of all products that cuBLAS reaches

    def ideal(self, flop: float) -> float:
        """Seconds of cuBLAS."""
        peak = self.multiprocessors * self.clock * self.flop
        return flop / (self.cublas * peak)


H200 = Gpu()


class Pass(NamedTuple):
    """What a block executes once for each of its tiles."""

    instructions: int  # of each warp
    special: int  # of those
    flop: float  # of the block

    def clocks(self, warps: int, gpu: Gpu) -> tuple[float, float]:
        """Of a multiprocessor: for what is no product, and for the products."""
        issue = self.instructions * warps / gpu.issued
        special = self.special * warps * 32 / gpu.special
        return max(issue, special), self.flop / gpu.flop


class Launch(NamedTuple):
    """One kernel: what its blocks take, and how often each goes through which loop."""

    blocks: int
    warps: int
    registers: int
    shared_bytes: int
    passes: tuple[tuple[float, Pass], ...]
    moved_bytes: float = 0.0

    def resident(self, gpu: Gpu) -> int:
        """Blocks of a multiprocessor at a time, as far as there are any."""
        allocated = math.ceil(self.registers / 8) * 8 * 32 * self.warps
        fit = min(
            gpu.registers // allocated,
            gpu.shared_bytes // (self.shared_bytes + gpu.reserved_bytes),
            gpu.threads // (32 * self.warps),
        )
        return max(1, min(fit, math.ceil(self.blocks / gpu.multiprocessors)))

    def seconds(self, gpu: Gpu) -> tuple[float, float]:
        """Least, where all units work at once; most, where a block's products wait for the rest."""
        resident = self.resident(gpu)
        waves = math.ceil(self.blocks / (resident * gpu.multiprocessors))
        least = most = 0.0
        for times, each in self.passes:
            other, product = each.clocks(self.warps, gpu)
            together = resident * max(other, product)
            least += times * together
            most += times * max(together, other + product)
        moved = self.moved_bytes / gpu.bandwidth
        return max(moved, waves * least / gpu.clock), max(moved, waves * most / gpu.clock)


class Kernel(NamedTuple):
    """A case of ``compilations()``, and what it does."""

    module: str
    name: str
    products: int  # of a tile
    sides: int = 1  # of one launch
    near: tuple[int, ...] = ()  # columns of the loops over tiles that hold positives


class Way(NamedTuple):
    """How a loss is computed."""

    loss: str
    D: int
    backward: bool
    kernels: tuple[Kernel, ...]

    @property
    def title(self) -> str:
        """As benchmarks name the case."""
        classes = f" {CLASSES} classes" * (self.loss == "sup_con")
        return f"N=M={N} D={self.D} bfloat16{classes} forward" + "+backward" * self.backward


def ways() -> Iterable[Way]:
    """The plain losses: which kernels serve them, as mim4dd.kernels chooses."""
    for D in (64, 128):
        at = f"D<={D} bfloat16"
        over_queries = Kernel("contrastive", f"single positive, over queries {at}", 2)
        single = f"single positive, over keys for {{}} {at}".format
        yield Way("info_nce", D, False, (Kernel("contrastive", single("loss"), 1),))
        both = Kernel("contrastive", single("query and key"), 2)
        yield Way("info_nce", D, True, (both, over_queries))
        grouped = f"grouped, over {{}} {at}".format
        if D == 128:  # losses alone are compiled for the widest rows
            alone = Kernel("contrastive", grouped("keys for loss"), 1, near=(64,))
            yield Way("sup_con", D, False, (alone,))
        both = Kernel("contrastive", grouped("keys for query and key"), 2, near=(32, 32))
        over_queries = Kernel("contrastive", grouped("queries"), 2, near=(128,))
        yield Way("sup_con", D, True, (both, over_queries))
        losses = Kernel("clip_loss", f"paired losses {at}", 1, SIDES)
        gradients = Kernel("clip_loss", f"paired gradients {at}", 2, SIDES)
        yield Way("clip_loss", D, False, (losses,))
        yield Way("clip_loss", D, True, (losses, gradients))
    at = "D<=256 bfloat16"
    alone, losses = (f"single positive, over keys for {wanted} {at}" for wanted in ("loss", "key"))
    over_keys = Kernel("contrastive", f"single positive, over keys for query apart {at}", 2)
    over_queries = Kernel("contrastive", f"single positive, over queries {at}", 2)
    yield Way("info_nce", 256, False, (Kernel("contrastive", alone, 1),))
    apart = (Kernel("contrastive", losses, 1), over_keys, over_queries)
    yield Way("info_nce", 256, True, apart)
    grouped = f"grouped, over {{}} {at}".format
    yield Way(
        "sup_con", 256, False, (Kernel("contrastive", grouped("keys for loss"), 1, near=(64,)),)
    )
    losses = Kernel("contrastive", grouped("keys for key"), 1, near=(64,))
    over_keys = Kernel("contrastive", grouped("keys for query apart"), 2, near=(32,))
    over_queries = Kernel("contrastive", grouped("queries"), 2, near=(128,))
    yield Way("sup_con", 256, True, (losses, over_keys, over_queries))


@functools.cache
def compiled(module: str, name: str) -> tuple[resources.Compiled, sass.Program]:
    """The kernel, and its machine code."""
    cases = resources.triton_cases(f"mim4dd.kernels.{module}")
    case = next(each for each in cases if each.name == name and CAPABILITY in each.capabilities)
    found = resources.compiled(case, CAPABILITY)
    return found, sass.Program.of(found.kernel.asm["cubin"])


def launch_of(kernel: Kernel, way: Way) -> Launch:
    """Of N queries and as many keys: plain tiles, and those that hold positives of a class."""
    found, program = compiled(kernel.module, kernel.name)
    usage = resources.usage_of(*found)
    tiling = next(each for each in found.case.constants.values() if isinstance(each, Tiling))
    warps = int(found.case.options["num_warps"])
    own = tiling.BLOCK_OWN
    main, *others = by_products(program)
    share = 1 / CLASSES if kernel.near else 0.0
    loops = [(tiling.BLOCK_STREAM, 1 - share, main)]
    loops += [(columns, share, loop) for columns, loop in zip(kernel.near, others, strict=False)]
    passes = []
    for columns, part, loop in loops:
        counted = program.count(loop)
        # Of two near loops the first multiplies once; what it takes is other instructions anyway.
        flop = kernel.products * 2.0 * own * columns * way.D
        passes.append((part * N / columns, Pass(counted["all"], counted["special"], flop)))
    moved = kernel.sides * N * way.D * 2 * 3.0  # rows of both sides read once, a gradient written
    blocks = kernel.sides * math.ceil(N / own)
    taken = usage.registers, usage.shared_bytes
    return Launch(blocks, warps, *taken, tuple(passes), moved)


def by_products(program: sass.Program) -> list[sass.Loop]:
    """Loops that multiply, that over plain tiles first: it multiplies most and has no masks."""
    loops = [loop for loop in program.innermost() if program.count(loop)["tensor"]]
    plain = [loop for loop in loops if program.count(loop)["async copy"]]
    first = min(plain or loops, key=lambda loop: program.count(loop)["all"])
    return [first, *(loop for loop in loops if loop != first)]


def per_logit(kernel: Kernel) -> float:
    """Instructions of a thread for each logit of a plain tile."""
    found, program = compiled(kernel.module, kernel.name)
    tiling = next(each for each in found.case.constants.values() if isinstance(each, Tiling))
    counted = program.count(by_products(program)[0])["all"]
    warps = int(found.case.options["num_warps"])
    return counted * 32 * warps / (tiling.BLOCK_OWN * tiling.BLOCK_STREAM)


def predicted(way: Way, gpu: Gpu = H200) -> tuple[float, float]:
    """Fractions of cuBLAS: least and most."""
    launches = [launch_of(kernel, way).seconds(gpu) for kernel in way.kernels]
    least, most = (sum(each) for each in zip(*launches, strict=True))
    ideal = gpu.ideal((3 if way.backward else 1) * 2.0 * N * N * way.D)
    return ideal / most, ideal / least


def measured(path: Path | None) -> dict[tuple[str, str], float]:
    """What `make gpu` found: time of the products alone over ours, by loss and case."""
    times: dict[tuple[str, str], dict[str, float]] = {}
    for record in Results(path).cases("losses").values() if path else ():
        if record.status == OK and "stats" in record.found:
            info, median = record.found["extra_info"], record.found["stats"]["median"]
            seconds = times.setdefault((info["op"], info["case"]), {})
            name = info["provider"]
            seconds[name] = min(median, seconds.get(name, median))
    both = {"mim4dd", "gemms"}
    return {
        key: each["gemms"] / each["mim4dd"] for key, each in times.items() if both <= each.keys()
    }


def table(path: Path | None = None) -> str:
    """Of Markdown."""
    found = measured(path)
    lines = [
        "| loss | D | | instructions a logit, by kernel | blocks of a multiprocessor "
        "| predicted | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in ways():
        low, high = predicted(way)
        counts = ", ".join(f"{per_logit(kernel):.1f}" for kernel in way.kernels)
        resident = ", ".join(str(launch_of(kernel, way).resident(H200)) for kernel in way.kernels)
        what = "forward and backward" if way.backward else "forward"
        seen = found.get((way.loss, way.title))
        lines.append(
            f"| `{way.loss}` | {way.D} | {what} | {counts} | {resident} "
            f"| {100 * low:.0f} to {100 * high:.0f} % | {f'{100 * seen:.0f} %' if seen else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measured", type=Path, help="results.jsonl of `make gpu`")
    print(table(parser.parse_args().measured))


if __name__ == "__main__":
    main()
