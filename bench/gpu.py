"""Check and measure on the GPU of this machine, with the Python and packages it has.

    make gpu PYTHON=python3          all of it: at most ten minutes, without a network
    make gpu-again PYTHON=python3    after a fix: what had not passed, other tiles, and the figures
    make gpu-rehearsal               the whole plan in small sizes, without a GPU

What it finds is appended to results.jsonl after every case, in $OUT where that is set or else in
bench/results/gpu-<tree>; report.md tells it, as far as it went. A part that fails, hangs or crashes
does not keep the others from running. Exits with an error if anything went wrong.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages import commit, plan, stand_ins
from stages.records import BEGUN, OK, STOPPED, Record, Results
from stages.summary import PLAN, summary, wrong
from stages.supervise import Ended, supervise_all

ROOT = commit.ROOT
RESULTS = ROOT / "bench" / "results"
LIMIT = 560.0  # seconds, so that a ten-minute lease holds it
SHORTEST = 3.0  # seconds in which a part may still find something


def run(parts: Iterable[plan.Part], folder: Path, limit: float) -> bool:
    """Run one part after the other, with the report written after each; whether all was right."""
    results = Results(folder / "results.jsonl")
    end, missing = time.monotonic() + limit, ""
    for part in parts:
        names = {"stages": [stage.name for stage in part.stages]}
        results.append(Record(PLAN, part.name, BEGUN, found=names))
        ended = Ended(0.0, missing and f"not begun: {missing}")
        if not missing:
            ended = run_part(part, results, folder / "log.txt", end - time.monotonic())
            missing = missing_after(part, results)
        status = STOPPED if ended.reason else OK
        results.append(Record(PLAN, part.name, status, *ended, names))
        write(folder / "report.md", summary(results.cases()))
    return not wrong(results.cases())


def run_part(part: plan.Part, results: Results, log: Path, left: float) -> Ended:
    """Run it, if there is time for any of it."""
    if left < SHORTEST:
        return Ended(0.0, "not begun: the time was over")
    print(f"{part.name} …", flush=True)
    return supervise_all(part.stages, results, log, min(part.limit, left), part.workers)


def missing_after(part: plan.Part, results: Results) -> str:
    """What nothing can follow without; empty where nothing is missing."""
    if not part.needed:
        return ""
    stage = part.stages[0].name
    found = results.cases(stage).get((stage, part.needed))
    right = found is not None and found.status == OK
    return "" if right else f"{part.name} found no {part.needed}"


def write(path: Path, text: str) -> None:
    """So that a kill leaves the old one or the new one."""
    new = path.with_suffix(".new")
    new.write_text(text, "utf-8")
    new.replace(path)


def fresh(folder: Path) -> Path:
    """A folder without the results of another run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("results.jsonl", "report.md", "log.txt", "ncu.txt"):
        (folder / name).unlink(missing_ok=True)
    return folder


def newest(pattern: str = "*/results.jsonl") -> Path:
    """The results of the last run."""
    found = sorted(RESULTS.glob(pattern), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit(f"no results to begin again from in {RESULTS}: give them by --again FILE")
    return found[-1]


@contextmanager
def surroundings(rehearsal: bool) -> Iterator[None]:
    """Where stages find their modules and, in a rehearsal, stand-ins for the GPU's tools."""
    os.chdir(ROOT)
    # Else they would find mim4dd/ of the sources, and no kernels, where a wheel is installed.
    os.environ["PYTHONSAFEPATH"] = "1"
    places = (ROOT / "bench", ROOT / "tests", ROOT / "tests/support", ROOT / "tools")
    paths = [*map(str, places), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    with tempfile.TemporaryDirectory() as tools:
        if rehearsal:
            stand_ins.write(Path(tools))
            os.environ["PATH"] = os.pathsep.join([tools, os.environ["PATH"]])
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--again", nargs="?", const="", help="results of an earlier run")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, in small sizes")
    parser.add_argument("--report", type=Path, help="print the report of a results file")
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds")
    args = parser.parse_args()
    if args.report:
        print(summary(Results(args.report).cases()))
        return
    before = {}
    if args.again is not None:
        before = Results(Path(args.again) if args.again else newest()).cases()
    tree = commit.trees()["kernels"][:12]
    default = Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS / f"gpu-{tree}"
    folder = fresh((args.out or default).resolve())
    # So that what stops this process lets it write its report.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    setting = plan.Setting(folder / "results.jsonl", "cpu" if args.rehearse else "cuda")
    parts = plan.again(setting, before) if args.again is not None else plan.full(setting)
    with surroundings(args.rehearse):
        right = run(parts, folder, args.limit)
    print((folder / "report.md").read_text("utf-8"))
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
