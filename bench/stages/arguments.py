"""What a stage's process is started with."""

import argparse
import os
from pathlib import Path
from typing import NamedTuple

from stages.records import Results


class Arguments(NamedTuple):
    """What every stage takes."""

    results: Results
    stage: str
    device: str  # "cpu" in a rehearsal, whose sizes are small
    only: tuple[str, ...]  # parts of the stage, or all of it where there is none

    @property
    def rehearsal(self) -> bool:
        """Whether this is no measurement, and sizes are small."""
        return self.device == "cpu"


def parse(description: str | None) -> Arguments:
    """Take the command line; in a rehearsal Triton's kernels are interpreted."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("only", nargs="*")
    args = parser.parse_args()
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before kernels are imported
    return Arguments(Results(args.results), args.stage, args.device, tuple(args.only))
