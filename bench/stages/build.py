"""Install the working tree for the GPU that is there; nothing is fetched."""

import os
import subprocess
import sys

from stages.arguments import parse
from stages.commit import ROOT
from stages.records import OK, run_cases


def install(cuda: str) -> dict:
    """With the CUDA half or without; an error where it does not build."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    command += ["--no-index", "--editable", str(ROOT)]
    subprocess.run(command, check=True, env=os.environ | {"MIM4DD_CUDA": cuda})
    return {}


def load() -> dict:
    """What a rehearsal has in place of a build."""
    import mim4dd

    return {"file": mim4dd.__file__}


def main() -> None:
    args = parse(__doc__)
    if args.rehearsal:
        run_cases(args.results, args.stage, [("installed", load)])
        return
    run_cases(args.results, args.stage, [("both halves", lambda: install("1"))])
    built = args.results.cases(args.stage)[args.stage, "both halves"]
    if built.status != OK:  # Triton's kernels need the CPU's alone
        run_cases(args.results, args.stage, [("the CPU's half", lambda: install("0"))])


if __name__ == "__main__":
    main()
