"""Go through `make gpu` without a GPU: both plans, with every part cut short, and killed.

    make gpu-rehearsal                       into runs/rehearsal
    python bench/rehearse.py FOLDER --kills 5

The commands are the real ones, in small sizes on the CPU, Triton's kernels interpreted. What takes
a GPU's tools speaks to stand-ins. Tells the seconds of each part, and what each kill lost.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import gpu
from stages import plan
from stages.records import BEGUN, OK, Results
from stages.summary import PLAN, parts_of, table
from stages.supervise import Stage

SLOWER = 10  # than a machine with a GPU and 16 cores
SHORT = 3.0  # seconds of a part that is cut short; none has ended by then


def whole(folder: Path, name: str, parts_of_plan: Iterable[plan.Part]) -> bool:
    """All of a plan; whether everything was right, and every part did something."""
    print(f"# The {name} plan", flush=True)
    parts = [
        part._replace(limit=SLOWER * part.limit, stages=tuple(map(patient, part.stages)))
        for part in parts_of_plan
    ]
    right = gpu.run(parts, gpu.fresh(folder), 3600)
    head, *rows = parts_of(Results(folder / "results.jsonl").cases())
    print(table([head, *rows]), flush=True)
    return right and all(row[head.index("ok")] != "0" for row in rows)


def patient(stage: Stage) -> Stage:
    """With the time that it takes here."""
    return stage._replace(limit=SLOWER * stage.limit, case_limit=SLOWER * stage.case_limit)


def cut_short(folder: Path) -> bool:
    """Every part is stopped; whether each was begun and noted all the same."""
    print("# Every part stopped", flush=True)
    parts = [
        part._replace(limit=SHORT, needed="")
        for part in plan.full(plan.Setting(folder / "results.jsonl", "cpu"))
    ]
    gpu.run(parts, gpu.fresh(folder), 3600)
    records = Results(folder / "results.jsonl").cases()
    print(table(parts_of(records)), flush=True)
    return all((PLAN, part.name) in records for part in parts) and not left_over(folder)


def killed(folder: Path, longest: float) -> bool:
    """Killed at a random moment before ``longest`` seconds.

    Whether no more was lost than was on, and nothing goes on.
    """
    command = [sys.executable, "bench/gpu.py", "--rehearse", "--out", str(gpu.fresh(folder))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    seconds = random.uniform(1, longest)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    records = Results(folder / "results.jsonl").cases().values()
    on = [f"{r.stage}, {r.case}" for r in records if r.status == BEGUN and r.stage != PLAN]
    kept = sum(r.status == OK for r in records)
    lines = (folder / "results.jsonl").read_text("utf-8").splitlines()
    for _ in range(100):
        if not left_over(folder):
            break
        time.sleep(0.1)
    left = left_over(folder)
    print(f"- after {seconds:.0f} s: {kept} cases kept, lost {on}, {len(left)} processes left")
    return len(on) <= plan.TRIAGE_WORKERS and not left and all(x.endswith("}") for x in lines)


def left_over(folder: Path) -> list[str]:
    """Processes that were started for the results of this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if str(folder / "results.jsonl") in words and str(os.getpid()) != path.parent.name:
            found.append(" ".join(words))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=3)
    args = parser.parse_args()
    folder = args.folder.resolve()
    with gpu.surroundings(rehearsal=True):
        started = time.monotonic()
        setting = plan.Setting(folder / "results.jsonl", "cpu")
        right = [whole(folder, "whole", plan.full(setting))]
        seconds = time.monotonic() - started
        setting = plan.Setting(folder / "again" / "results.jsonl", "cpu")
        right.append(whole(folder / "again", "second", plan.again(setting, {})))
        right.append(cut_short(folder / "short"))
        print("# Killed", flush=True)
        right += [killed(folder / "killed", seconds) for _ in range(args.kills)]
    sys.exit(0 if all(right) else 1)


if __name__ == "__main__":
    main()
