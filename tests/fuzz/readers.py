"""Read many changed files of every format: make fuzz, or

    python tests/fuzz/readers.py --cases 20000 --workers 2 [--formats NAME …] [--seed N]

A worker process reads thousands of them, below a limit of memory; one that crashes or hangs is
replaced, and its case is a fault. ``--only FORMAT:SEED`` repeats one case in this process.
"""

import argparse
import collections
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "support"), str(HERE.parents[1])]

from fuzz.cases import Fault, make_templates, run_case  # noqa: E402
from fuzz.formats import FORMATS  # noqa: E402

_HANGS = 15.0  # seconds without a word
_ADDRESSES = 16 * 2**30  # bytes that a case may ask for: what it does not touch costs nothing
_MEMORY = 2 * 2**30  # bytes that a worker may take


def schedule(names: list[str], cases: int, seed: int) -> list[tuple[str, int]]:
    """So many cases, of each format as many as it is quick."""
    shares = {name: 1 / FORMATS[name].cost for name in names}
    whole = sum(shares.values())
    found = [
        (name, seed + index)
        for name in names
        for index in range(max(1, round(cases * shares[name] / whole)))
    ]
    return found


def work(tasks: list[tuple[str, int]], pipe: Connection) -> None:
    """Run cases, saying before each which it is, and after it what came of it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # progress bars
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place).resolve()
        os.chdir(folder)
        templates = make_templates(folder, sorted({name for name, _ in tasks}))
        used = _addresses() + _ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (used, used))
        for number, (name, seed) in enumerate(tasks):
            pipe.send(("begun", name, seed))
            here = folder / f"case{number}"
            here.mkdir()
            pipe.send(("done", *run_case(name, seed, templates[name], here)))
            shutil.rmtree(here)
        pipe.send(("end",))


def _addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def resident(process: int) -> int:
    """Bytes of memory that a process takes."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


class Worker:
    """A process and the cases that it has still to run."""

    def __init__(self, tasks: list[tuple[str, int]]) -> None:
        self.tasks = tasks
        self.pipe, other = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=work, args=(tasks, other), daemon=True)
        self.process.start()
        other.close()
        self.heard = time.monotonic()
        self.current: tuple[str, int] | None = None


def run_all(tasks: list[tuple[str, int]], workers: int) -> tuple[collections.Counter, list[Fault]]:
    """How many cases were read and refused, and all faults."""
    outcomes: collections.Counter = collections.Counter()
    faults: list[Fault] = []
    living = [Worker(tasks[index::workers]) for index in range(workers)]
    while living:
        ready = wait([worker.pipe for worker in living], timeout=0.2)
        for worker in list(living):
            failure = None
            if worker.pipe in ready:
                try:
                    message = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    failure = f"exit status {worker.process.exitcode}"
                else:
                    worker.heard = time.monotonic()
                    if message[0] == "begun":
                        worker.current = message[1:]
                    elif message[0] == "done":
                        worker.tasks, worker.current = worker.tasks[1:], None
                        outcomes[message[1]] += 1
                        if message[2] is not None:
                            faults.append(message[2])
                            print(*message[2], flush=True)
                    else:
                        living.remove(worker)
            elif time.monotonic() - worker.heard > _HANGS * (1 if worker.current else 5):
                worker.process.kill()
                failure = "no end"
            elif resident(worker.process.pid) > _MEMORY:
                worker.process.kill()
                failure = f"more than {_MEMORY >> 20} MiB"
            if failure is not None:
                living.remove(worker)
                if worker.current is None:
                    raise SystemExit(f"a worker ended between cases: {failure}")
                faults.append(Fault(*worker.current, "crash", failure))
                print(*faults[-1], flush=True)
                outcomes["crashed"] += 1
                if worker.tasks[1:]:
                    living.append(Worker(worker.tasks[1:]))
    return outcomes, faults


def repeat(name: str, seed: int) -> None:
    """Run one case here, and show the exception that it raises."""
    place = Path(tempfile.mkdtemp(prefix="fuzz-")).resolve()
    templates = make_templates(place, [name])
    (place / "case").mkdir()
    print(run_case(name, seed, templates[name], place / "case"))
    try:
        FORMATS[name].read(place / "case/in")
    except BaseException:
        traceback.print_exc()
    print(place / "case/in")


def main() -> None:
    """Run what is asked for; exit with 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--formats", nargs="*", default=list(FORMATS))
    parser.add_argument("--only", metavar="FORMAT:SEED")
    options = parser.parse_args()
    if options.only:
        name, _, seed = options.only.rpartition(":")
        repeat(name, int(seed))
        return
    tasks = schedule(options.formats, options.cases, options.seed)
    outcomes, faults = run_all(tasks, options.workers)
    kinds = collections.Counter((fault.format, fault.kind) for fault in faults)
    print(f"{sum(outcomes.values())} files: {dict(outcomes)}; {len(faults)} faults: {dict(kinds)}")
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    main()
