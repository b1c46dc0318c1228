"""compute-sanitizer on small launches: writes and reads out of bounds, unwritten, races."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from stages.arguments import Arguments, parse
from stages.launches import SMALL
from stages.records import Case, run_cases

TOOL = "compute-sanitizer"
CHECKS = ("memcheck", "racecheck", "initcheck")
FIRST_ERRORS = 20  # lines


def check(args: Arguments, tool: str, names: tuple[str, ...]) -> dict:
    """One of its tools on some launches; an error where it found any."""
    if shutil.which(TOOL) is None:
        return {"not there": TOOL}
    command = [TOOL, "--tool", tool, "--error-exitcode", "9"]
    command += [sys.executable, "-m", "stages.launches", "--device", args.device, *names]
    # Each tensor an allocation of its own, so that what lies behind it is out of bounds.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    text = result.stdout + result.stderr
    print(text)
    lines = [line for line in text.splitlines() if re.match(r"=========|launch ", line)]
    if result.returncode:
        raise RuntimeError("\n".join([f"exit status {result.returncode}", *lines[:FIRST_ERRORS]]))
    return {"launches": text.count("launch "), "summary": lines[-1:]}


def cases(args: Arguments) -> Iterator[Case]:
    """memcheck on each launch, then the others on the plain loss."""
    for name in SMALL:
        yield f"memcheck {name}", partial(check, args, "memcheck", (name,))
    for tool in CHECKS[1:]:
        yield f"{tool} info_nce", partial(check, args, tool, ("info_nce",))


def main() -> None:
    """A share of the cases, as 1/4, or those that are named."""
    args = parse(__doc__)
    every = list(cases(args))
    if share := re.fullmatch(r"(\d+)/(\d+)", args.only[0]):
        every = every[int(share[1]) - 1 :: int(share[2])]
    else:
        every = [case for case in every if case[0] in args.only]
    run_cases(args.results, args.stage, every)


if __name__ == "__main__":
    main()
