"""Nsight Compute on the kernels of large launches: all it says goes into ncu.txt."""

import re
import shutil
import subprocess
import sys
from functools import partial

from stages.arguments import Arguments, parse
from stages.records import run_cases

TOOL = "ncu"
# Kernel: the launch that has it, and how many kernels of that name to let pass: warm-up, compiling.
KERNELS = {
    "keys_pass": ("info_nce forward", 1),
    "keys_pass with gradients": ("info_nce", 1),
    "queries_pass": ("info_nce", 1),
    "forward_kernel": ("info_nce wide", 1),
    "gradient_kernel": ("info_nce wide", 1),
    "grouped_keys_pass": ("sup_con", 1),
    "sums_kernel": ("clip_loss", 1),
    "weights_kernel": ("clip_loss", 1),
    "backward_kernel": ("norm_relu_pool", 1),
}
FIGURES = {
    "ms": r"Duration\s+(\w+)\s+([\d.,]+)",
    "SM %": r"Compute \(SM\) Throughput\s+%\s+([\d.,]+)",
    "memory %": r"Memory Throughput\s+%\s+([\d.,]+)",
    "registers": r"Registers Per Thread\s+\S+\s+([\d.,]+)",
    "occupancy %": r"Achieved Occupancy\s+%\s+([\d.,]+)",
}
MILLISECONDS = {"ns": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1.0, "msecond": 1.0, "s": 1e3}


def counted(args: Arguments, name: str) -> dict:
    """Of one kernel."""
    if shutil.which(TOOL) is None:
        return {"not there": TOOL}
    launch, skip = KERNELS[name]
    command = [TOOL, "--set", "full", "--clock-control", "none", "--target-processes", "all"]
    command += ["--kernel-name", name.split()[0], "--launch-skip", str(skip), "--launch-count", "1"]
    command += [sys.executable, "-m", "stages.launches", "--device", args.device, "--large", launch]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    text = result.stdout + result.stderr
    with args.results.path.with_name("ncu.txt").open("a") as out:
        out.write(f"==== {name}\n{text}\n")
    found = figures(text)
    if result.returncode or not found:
        raise RuntimeError(text[-500:])
    return found


def figures(text: str) -> dict[str, float]:
    """What the summary tables hold, as numbers."""
    found = {}
    for name, pattern in FIGURES.items():
        if match := re.search(pattern, text):
            value = float(match[match.lastindex or 1].replace(",", ""))
            found[name] = value * (MILLISECONDS[match[1]] if name == "ms" else 1)
    return found


def main() -> None:
    args = parse(__doc__)
    every = args.only or tuple(KERNELS)
    cases = [(name, partial(counted, args, name)) for name in every]
    run_cases(args.results, args.stage, cases)


if __name__ == "__main__":
    main()
