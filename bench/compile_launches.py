"""Compile what the tests launch, without a GPU, and tabulate how much that is.

    pytest -m gpu --as-h200 --record-launches launches.jsonl
    python bench/compile_launches.py launches.jsonl

Every specialisation is compiled for the GPU that its launch took to be there. Exits with an error
if one does not compile, spills registers, or is slow as bench/resources.py says. With --front-end
only Triton's own language is checked, names, types and shapes: a fraction of the time.

With --pack FILE the kernels for an H200 are put into a file, which `make gpu` takes from dist/ on a
machine whose Triton is the one that runs this, for the same version of Python.
"""

import argparse
import importlib
import json
import os
import resource
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cold_launch import launch
from resources import on_every_cpu, source, usage_of
from stages import carried
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

from mim4dd.kernels._ahead_of_time import Compilation

H200 = 90  # its compute capability is 9.0


class Result(NamedTuple):
    """What became of one specialisation."""

    kernel: str
    launches: int
    seconds: float  # of a CPU
    wrong: str  # empty for nothing


def compilation_of(record: dict[str, Any]) -> Compilation:
    """The case that a line of the file describes."""
    kernel = getattr(importlib.import_module(record["module"]), record["kernel"])
    signature = {}
    for name, kind in record["signature"].items():
        group = kernel.fn.__annotations__.get(name)
        signature[name] = group(*kind) if isinstance(kind, list) else kind
    return Compilation(
        f"{record['kernel']} of {record['test']}",
        kernel,
        signature,
        {tuple(place): constant_of(value) for place, value in record["constants"]},
        record["options"],
        (record["capability"],),
        tuple(map(tuple, record["divisible"])),
    )


def constant_of(value: Any) -> Any:
    """A number, or a NamedTuple by its module, name and fields."""
    if not isinstance(value, list):
        return value
    module, name, fields = value
    if not module.startswith("mim4dd.kernels."):
        raise ValueError(f"{module}.{name} is no type of mim4dd.kernels")
    return getattr(importlib.import_module(module), name)(*fields)


def cpu_seconds() -> float:
    """Of this process and of the assemblers that it started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def check(line: str, front_end: bool) -> Result:
    """Compile one."""
    record = json.loads(line)
    started = cpu_seconds()
    try:
        wrong = (translate if front_end else compile_whole)(compilation_of(record))
    except Exception as error:  # whatever a compiler raises is told beside the others
        wrong = f"{type(error).__name__}: {error}"
    return Result(record["kernel"], record["launches"], cpu_seconds() - started, wrong)


def translate(case: Compilation) -> str:
    """Nothing: what Triton's front end finds, it raises. The first steps of ``triton.compile``."""
    target = GPUTarget("cuda", *case.capabilities, 32)
    backend, context = make_backend(target), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    options = backend.parse_options(dict(case.options))
    functions = backend.get_codegen_implementation(options), backend.get_module_map()
    source(case).make_ir(target, options, *functions, context)
    return ""


def compile_whole(case: Compilation) -> str:
    """What is wrong with its machine code."""
    usage = usage_of(case, *case.capabilities, launch(case))
    return f"{usage.spill_bytes} bytes spilled" if usage.spill_bytes else usage.slow


def table(results: Iterable[Result]) -> str:
    """By kernel, and in all."""
    by_kernel = defaultdict(list)
    for result in results:
        by_kernel[result.kernel].append(result)
        by_kernel["all"].append(result)
    rows = ["| kernel | launches | specialisations | wrong | CPU s |", "|---|---|---|---|---|"]
    for name in sorted(by_kernel, key=lambda name: (name == "all", name)):
        some = by_kernel[name]
        launches, wrong = sum(r.launches for r in some), sum(bool(r.wrong) for r in some)
        seconds = sum(r.seconds for r in some)
        rows.append(f"| {name} | {launches} | {len(some)} | {wrong} | {seconds:.1f} |")
    return "\n".join(rows)


def seen_apart(lines: list[str]) -> list[str]:
    """One of those that the front end sees alike: alignment and the number of warps come later."""
    found = {}
    for line in lines:
        record = json.loads(line)
        parts = (record[name] for name in ("module", "kernel", "signature", "constants"))
        found.setdefault(json.dumps([*parts]), line)
    return list(found.values())


def report(path: Path, lines: list[str], results: list[Result]) -> None:
    """Print the table; exit where something is wrong."""
    print(table(results))
    wrong = [
        f"{each.wrong}\n{line}" for line, each in zip(lines, results, strict=True) if each.wrong
    ]
    if wrong or not lines:
        sys.exit("\n\n".join(wrong) or f"{path} has no launches")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("launches", type=Path, help="what pytest --record-launches wrote")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--front-end", action="store_true", help="translate only")
    how.add_argument("--pack", type=Path, help="put the kernels for an H200 into this file")
    args = parser.parse_args()
    lines = args.launches.read_text("utf-8").splitlines()
    if args.front_end:
        lines = seen_apart(lines)
    with tempfile.TemporaryDirectory() as folder:
        if args.pack:  # nothing but these, which every process of the pool puts there
            os.environ["TRITON_CACHE_DIR"] = folder
        with on_every_cpu() as pool:
            results = list(pool.map(partial(check, front_end=args.front_end), lines, chunksize=4))
        if args.pack:
            print(f"{carried.pack(Path(folder), args.pack, H200)} kernels in {args.pack}")
    report(args.launches, lines, results)


if __name__ == "__main__":
    main()
