"""Compile every GPU kernel for every supported GPU, without one, and tabulate what each takes.

Every specialisation is compiled for sm_90; for the others, of Triton's, those that take most.

    python bench/resources.py [--triton] [--cuda] > docs/resources.md

Exits with an error if a kernel does not compile, spills registers to memory, reads or writes
aligned rows two bytes at a time, multiplies tiles of 64 rows without WGMMA on sm_90, or waits for
every tile that it loads.
"""

import argparse
import functools
import importlib
import multiprocessing
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import sass
import triton
from torch.utils.cpp_extension import include_paths
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import mim4dd.kernels
from mim4dd.kernels._ahead_of_time import CAPABILITIES, EVERY_CASE, Compilation
from mim4dd.kernels._arguments import Tiling

ROOT = Path(__file__).resolve().parent.parent


HALF = ("*bf16", "*fp16")
NARROW = re.compile(r"\b(?:ld|st)\.global[.\w]*\.b16\b")

HEADING = """# What every GPU kernel takes

`python bench/resources.py` writes this page. It compiles every kernel ahead of time, without a GPU.
CI does the same, and fails if a kernel spills registers. For sm_90 the page lists every
specialisation. For the other GPUs it lists every CUDA kernel, and for each Triton kernel the
specialisation that takes most.
"""


class Usage(NamedTuple):
    """What one kernel takes on one GPU."""

    kernel: str
    capability: int
    registers: int
    shared_bytes: int
    spill_bytes: int
    slow: str = ""  # what it does that its tiles need not


def on_every_cpu() -> ProcessPoolExecutor:
    """Processes to compile in: spawned, for a fork of a process that has threads may hang."""
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))


def triton_usages() -> Iterator[Usage]:
    """Compile what each module of mim4dd.kernels lists in compilations(), on every CPU."""
    names = [m.name for m in pkgutil.iter_modules(mim4dd.kernels.__path__, "mim4dd.kernels.")]
    jobs = [
        (name, index, capability)
        for name in names
        if not name.rpartition(".")[2].startswith("_")
        for index, case in enumerate(triton_cases(name))
        for capability in case.capabilities
    ]
    with on_every_cpu() as pool:
        yield from pool.map(triton_usage, *zip(*jobs, strict=True), chunksize=4)


@functools.cache
def triton_cases(module: str) -> list[Compilation]:
    """Its compilations; a kernel cannot be sent to another process, its place in this list can."""
    return list(importlib.import_module(module).compilations())


def triton_usage(module: str, index: int, capability: int) -> Usage:
    """Compile one."""
    return usage_of(*compiled(triton_cases(module)[index], capability))


class Compiled(NamedTuple):
    """One kernel for one GPU."""

    case: Compilation
    capability: int
    kernel: triton.compiler.CompiledKernel


def compiled(case: Compilation, capability: int) -> Compiled:
    """Down to machine code."""
    target = GPUTarget("cuda", capability, 32)
    return Compiled(case, capability, triton.compile(source(case), target, case.options))


def source(case: Compilation) -> ASTSource:
    """Tensors lie at multiples of 16 bytes, as PyTorch allocates them, where the case is silent."""
    divisible = case.pointers() if case.divisible is None else case.divisible
    attributes = {place: [["tt.divisibility", 16]] for place in divisible}
    return ASTSource(case.kernel, case.signature, case.constants, attributes)


def usage_of(case: Compilation, capability: int, kernel: triton.compiler.CompiledKernel) -> Usage:
    """What it takes."""
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        report = run(str(cuobjdump), "-res-usage", cubin.name)
    # Triton kernels have no local arrays: whatever is on the stack was spilled.
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", report).groups()
    used = int(registers), kernel.metadata.shared, int(stack)
    reason = slow(case, capability, kernel.asm["ptx"])
    tiling = tiling_of_half(case)
    # There are no asynchronous copies of two bytes, as rows of odd lengths would need.
    if not reason and tiling is not None and tiling.DIVISOR == 16:
        reason = waits(sass.Program.of(kernel.asm["cubin"]))
    return Usage(case.name, capability, *used, reason)


def tiling_of_half(case: Compilation) -> Tiling | None:
    """Of kernels in tiles of half precision."""
    tilings = (each for each in case.constants.values() if isinstance(each, Tiling))
    half = any(str(kind) in HALF for kind in flat(case.signature.values()))
    return next(tilings, None) if half else None


def slow(case: Compilation, capability: int, ptx: str) -> str:
    """Of kernels in tiles of half precision: what their instructions show, empty for nothing."""
    tiling = tiling_of_half(case)
    if tiling is None:
        return ""
    narrow = len(NARROW.findall(ptx)) if tiling.DIVISOR == 16 else 0
    if narrow:
        return f"{narrow} loads and stores of two bytes"
    if capability == 90 and tiling.BLOCK_OWN >= 64 and "mma.sync" in ptx:
        return "products without WGMMA"
    return ""


def waits(program: sass.Program) -> str:
    """Whether no loop over tiles loads the next while it multiplies one; empty where one does.

    Loops with masks load one tile at a time: they are short. So do loops that hold another, as
    over the keys that each query leaves out: Triton pipelines only those that hold none.
    """
    counts = [program.count(loop) for loop in program.innermost()]
    multiplying = [count for count in counts if count["tensor"]]
    if multiplying and not any(count["async copy"] for count in multiplying):
        return "tiles that are waited for: no asynchronous copies"
    return ""


def flat(kinds: Iterable[object]) -> Iterator[object]:
    """Those of arguments, and of the fields of arguments."""
    for kind in kinds:
        yield from kind if isinstance(kind, tuple) else (kind,)


def cuda_usages() -> Iterator[Usage]:
    """Compile csrc/*.cu with nvcc against the headers of the installed torch, CUDA build or not.

    Each as it is built for one GPU; for the others, the device's half of all in one go, since most
    of the work is reading torch's headers.
    """
    if shutil.which("nvcc") is None:
        sys.exit("nvcc is not on the PATH: install the CUDA toolkit, or pass --triton alone")
    sources = sorted((ROOT / "csrc").glob("*.cu"))
    with (
        tempfile.NamedTemporaryFile("w", suffix=".cu") as together,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        together.writelines(f'#include "{source}"\n' for source in sources)
        together.flush()
        others = {
            capability: pool.submit(nvcc, Path(together.name), capability, "-cubin")
            for capability in CAPABILITIES
            if capability not in EVERY_CASE
        }
        (capability,) = EVERY_CASE
        built = pool.map(lambda source: nvcc(source, capability, "-c"), sources)
        places: dict[str, str] = {}  # of the kernels
        for source, usages in zip(sources, built, strict=True):
            for usage in usages:
                places[usage.kernel] = source.name
                yield usage._replace(kernel=f"{source.name} {usage.kernel}")
        for other in others.values():
            for usage in other.result():
                yield usage._replace(kernel=f"{places[usage.kernel]} {usage.kernel}")


def nvcc(source: Path, capability: int, what: str) -> list[Usage]:
    """What the kernels of a file take."""
    includes = [*include_paths(), sysconfig.get_path("include")]
    command = ["nvcc", what, "-O3", "-std=c++17", "-Xptxas", "-v", "-o", os.devnull]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030a0000"]
    command += ["-DUSE_CUDA", *(f"-I{path}" for path in includes)]
    report = run(*command, f"-arch=sm_{capability}", str(source))
    usages = []
    for entry in report.split("Compiling entry function '")[1:]:
        (kernel,) = run("c++filt", entry.split("'")[0]).split("\n", 1)[:1]
        kernel = re.sub(r"\(anonymous namespace\)::|^void |\(.*", "", kernel)
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        spills = re.search(r"(\d+) bytes spill stores", entry)
        usages.append(
            Usage(
                kernel,
                capability,
                int(registers[1]),
                int(shared[1]) if shared else 0,
                int(spills[1]),
            )
        )
    return usages


def run(*command: str) -> str:
    """Standard output and error of a command that must succeed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--triton", action="store_true", help="only the Triton kernels")
    parser.add_argument("--cuda", action="store_true", help="only csrc/*.cu")
    parser.add_argument("--spilled", type=int, default=0, help="bytes that a kernel may spill")
    args = parser.parse_args()
    usages: list[Usage] = []
    if args.triton or not args.cuda:
        usages += triton_usages()
    if args.cuda or not args.triton:
        usages += cuda_usages()
    first = {usage.kernel: place for place, usage in reversed([*enumerate(usages)])}
    usages.sort(key=lambda usage: (first[usage.kernel], usage.capability))
    print(HEADING)
    print("| kernel | GPU | registers | shared memory | spilled |")
    print("|---|---|---|---|---|")
    for usage in usages:
        print(
            f"| {usage.kernel} | sm_{usage.capability} | {usage.registers} "
            f"| {usage.shared_bytes} B | {usage.spill_bytes} B |"
        )
    spilling = [usage for usage in usages if usage.spill_bytes > args.spilled]
    if spilling:
        sys.exit(f"{len(spilling)} of {len(usages)} kernels spill registers")
    slow_ones = [f"{u.kernel} on sm_{u.capability}: {u.slow}" for u in usages if u.slow]
    if slow_ones:
        sys.exit("\n".join(slow_ones))


if __name__ == "__main__":
    main()
