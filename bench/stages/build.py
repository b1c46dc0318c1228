"""Install the working tree for the GPU that is there; nothing is fetched.

What `make gpu-carry` put into dist/ on another machine is taken, if it fits. The rest is compiled.
"""

import os
import subprocess
import sys

from find_wheel import fitting_wheels

from stages.arguments import parse
from stages.commit import ROOT
from stages.records import OK, run_cases

PIP = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index")


def take_kernels() -> dict:
    """Those that Triton would compile; an error where it would not find them."""
    import torch

    from stages import carried

    if not carried.ARCHIVE.exists():
        return {"kernels": 0}
    major, minor = torch.cuda.get_device_capability()
    return {"kernels": carried.unpack(carried.ARCHIVE, 10 * major + minor)}


def take_wheel() -> dict:
    """One of these sources with both halves, if there is one; an error where it does not load."""
    wheels = fitting_wheels()
    if not wheels:
        return {"wheel": None}
    subprocess.run([*PIP, "--force-reinstall", str(wheels[0])], check=True)
    subprocess.run([sys.executable, "-m", "mim4dd", "doctor"], check=True)
    return {"wheel": wheels[0].name}


def install(cuda: str) -> dict:
    """With the CUDA half or without; an error where it does not build."""
    command = [*PIP, "--no-build-isolation", "--editable", str(ROOT)]
    subprocess.run(command, check=True, env=os.environ | {"MIM4DD_CUDA": cuda})
    return {}


def load() -> dict:
    """What a rehearsal has in place of a build."""
    import mim4dd

    return {"file": mim4dd.__file__}


def main() -> None:
    args = parse(__doc__)

    def run(name, call):
        run_cases(args.results, args.stage, [(name, call)])
        return args.results.cases(args.stage)[args.stage, name]

    if args.rehearsal:
        run("installed", load)
        return
    run("carried kernels", take_kernels)
    if run("carried wheel", take_wheel).found.get("wheel"):
        return
    if run("both halves", lambda: install("1")).status != OK:
        run("the CPU's half", lambda: install("0"))  # which is all that Triton's kernels need


if __name__ == "__main__":
    main()
