"""Stages for the tests of what runs stages: cases that pass, fail, hang, or end their process.

Run as a script, it runs a plan of them in a folder.
"""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import gpu
from stages.arguments import parse
from stages.plan import Part
from stages.records import run_cases
from stages.supervise import Stage


def act(how, done):
    """What a case does; ``done`` holds a line for each that did it."""
    if how == "fail":
        raise ValueError("as it should")
    if how == "lost":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if how == "hang":
        time.sleep(1000)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.005 if how == "slow" else 0)
    with done.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return {"figure": 1.5}


def stage(results, name, *cases, limit=60.0, case_limit=60.0):
    """Cases named by what they do and a number: ``"slow 3"``."""
    command = (sys.executable, __file__, "--results", str(results), "--stage", name, *cases)
    return Stage(name, command, limit, case_limit)


def main():
    args = parse(__doc__)
    done = args.results.path.with_name("done.txt")
    cases = [(name, partial(act, name.split()[0], done)) for name in args.only]
    run_cases(args.results, args.stage, cases)


def run_plan(folder):
    """Two stages, one after the other, of more cases than there is time for."""
    cases = [f"slow {number}" for number in range(200)]
    results = folder / "results.jsonl"
    parts = [Part(name, 60, (stage(results, name, *cases),)) for name in ("first", "second")]
    gpu.run(parts, folder, 60)


if __name__ == "__main__":
    main() if "--stage" in sys.argv else run_plan(Path(sys.argv[1]))
