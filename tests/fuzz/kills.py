"""Kill every command that works for long, by SIGKILL at random moments: make kills, or

    python tests/fuzz/kills.py --kills 50 [--commands NAME …] [--seed N]

After each kill the command is given again, as a user would. Whenever it comes to its end, all that
it left must be what one left that nobody disturbed: the same files, the same bits but for what the
work cost.
"""

import argparse
import csv
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parents[1])]

from killing import start  # noqa: E402

from mim4dd.distill.files.atomic import load_tensors  # noqa: E402

_NETWORK = "--width 4 --depth 1"
_DM = f"--method dm {_NETWORK} --batch-real 4 --num-keys 40 --num-eval 1 --eval-epochs 2"
_STEPS = "--iterations 30 --checkpoint-every 4 --keep-every 5 --eval-every 15"
COMMANDS = {
    "distill": f"distill {_DM} {_STEPS} --log tensorboard",
    "experts": f"experts {_NETWORK} --num-experts 6 --train-epochs 1 --batch-train 128",
    "sweep": f"sweep {_DM} {_STEPS} --vary weight=0,0.1 --seeds 1",
    "compare": f"compare {_DM} {_STEPS} --num-distill 1 --workers 1",
    "reproduce": "reproduce digits-dm-ipc1-0 --results out/results",
}
_LATER, _SOONER = 1.1, 0.7
_COSTS = ("seconds", "cpu", "peak", "install")


def command_in(folder: Path, name: str) -> str:
    """What to type next."""
    if name == "distill" and (folder / "out" / "config.json").exists():
        return "distill --resume out --log tensorboard"
    return f"{COMMANDS[name]} --out out"


def run(folder: Path, name: str, seconds: float | None = None) -> int:
    """Run a command to its end, or kill it after some seconds; its exit status."""
    child = start(folder, command_in(folder, name), str(folder / "output"))
    child.join(seconds)
    child.kill()
    child.join()
    return int(child.exitcode)


def without_costs(value: Any) -> Any:
    """What JSON holds, but for seconds and bytes."""
    if isinstance(value, list):
        return [without_costs(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: without_costs(each)
        for key, each in value.items()
        if not any(cost in key for cost in _COSTS)
    }


def _tensors(path: Path) -> Any:
    tensors, header = load_tensors(path)
    bits = {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in tensors.items()}
    return bits, without_costs(header)


def _table(path: Path) -> Any:
    with path.open(newline="") as file:
        return [without_costs(row) for row in csv.DictReader(file)]


_READERS: dict[str, Callable[[Path], Any]] = {
    ".safetensors": _tensors,
    ".json": lambda path: without_costs(json.loads(path.read_bytes())),
    ".jsonl": lambda path: [
        without_costs(json.loads(line)) for line in path.read_bytes().splitlines()
    ],
    ".csv": _table,
}


def contents(folder: Path) -> dict[str, Any]:
    """All files that a command left, with what they hold where that depends on no clock."""
    return {
        str(path.relative_to(folder)): _READERS.get(path.suffix, lambda _: None)(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "tensorboard"  # which has a file for every part
    }


def differences(whole: Path, parts: Path) -> list[str]:
    """Files that only one of two folders has, or that hold something else."""
    first, second = contents(whole), contents(parts)
    return sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or first[name] != second[name]
    )


def kill_all(name: str, kills: int, place: Path) -> tuple[int, int, list[str]]:
    """Kill a command so many times: the kills, how often it came to its end, and all faults."""
    whole, parts = place / f"{name}-whole", place / f"{name}-parts"
    whole.mkdir()
    start(place, "--version", str(place / "output")).join()  # once the server has imported all
    began = time.monotonic()
    if run(whole, name) != 0:
        raise SystemExit(f"{name} fails by itself:\n{(whole / 'output').read_text()}")
    longest = (time.monotonic() - began) / 2
    killed, ends, faults = 0, 0, []
    parts.mkdir()
    while killed < kills or (parts / "out").exists():
        status = run(parts, name, random.uniform(0, longest) if killed < kills else None)
        if status == -signal.SIGKILL:
            killed += 1
            longest *= _LATER
            sys.stderr.write(f"{name}: {killed} of {kills} kills, {ends} ends\r")
            continue
        said = (parts / "output").read_text(errors="replace")
        wrong = differences(whole / "out", parts / "out") if status == 0 else [said[-2000:]]
        ends += status == 0
        longest *= _SOONER  # about four kills to an end, however busy the machine is
        if wrong:
            kept = place / f"{name}-fault{len(faults)}"
            shutil.copytree(parts, kept, symlinks=True)
            faults.append(f"{name} after {killed} kills, see {kept}: {'; '.join(wrong)}")
            print(faults[-1], flush=True)
        shutil.rmtree(parts)
        parts.mkdir()
    return killed, ends, faults


def main() -> None:
    """Kill what is asked for; exit with 1 if anything is not as without kills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--commands", nargs="*", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    place = Path(tempfile.mkdtemp(prefix="kills-"))
    faults = []
    for name in options.commands:
        killed, ends, found = kill_all(name, options.kills, place)
        faults += found
        print(f"{name}: {killed} kills, {ends} ends, {len(found)} faults", flush=True)
    if faults:
        raise SystemExit(1)
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
