"""Break the sources one small thing at a time, and see whether their tests notice.

    python tests/mutation/run.py --files 'csrc/contrastive*' --limit 50 --seed 1

Mutants are drawn by the seed and tried in a copy of the tree under ``build/mutation``. Each becomes
a line of ``results.jsonl`` there: killed, survived, timeout, does not compile, or equivalent where
the compiler made the same program. Started again, the script goes on where it was stopped; a mutant
of a file that has changed is a new one, and ``--again`` tries those that survived once more. Two
runs at once need a ``--folder`` each. ``--report`` prints what the lines say. `tests.txt` names the
tests of each source.
"""

import argparse
import contextlib
import fnmatch
import functools
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from mutants import Mutant, mutants_of
from torch.utils.cpp_extension import library_paths

from mim4dd._C import instruction_sets

ROOT = Path(__file__).resolve().parents[2]
EXTENSION = Path("mim4dd", "_C.abi3.so")
BYTES = 6 << 30  # of memory, lest a mutant takes all of the machine's
BUILD_SECONDS = 900


@functools.cache
def table() -> list[tuple[list[str], list[str]]]:
    """Patterns of sources, and their tests."""
    lines = (Path(__file__).parent / "tests.txt").read_text().splitlines()
    pairs = [line.split(":") for line in lines if line and not line.startswith("#")]
    return [(left.split(), [place_of(name) for name in right.split()]) for left, right in pairs]


def place_of(name: str) -> str:
    """Where the file is with that name, or the folder."""
    (found,) = (ROOT / "tests").rglob(f"{name}.py") if "/" not in name else [ROOT / "tests" / name]
    return found.relative_to(ROOT).as_posix()


def tests_of(file: str) -> list[str]:
    """The tests that a mutant of a source has to fail: by the table, else those of its room."""
    for patterns, tests in table():
        if any(fnmatch.fnmatch(file, pattern) for pattern in patterns):
            return tests
    room = Path("tests", *Path(file).parts[1:3])
    return [room.as_posix()] if (ROOT / room).is_dir() else []


def copy_tree(folder: Path) -> None:
    """Make the folder hold the tracked files as they are here; what is the same keeps its time."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        source, target = ROOT / name, folder / name
        if not source.is_file() or source.is_symlink():
            continue
        if not target.exists() or target.read_bytes() != source.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    kernels = folder / "mim4dd" / "kernels"
    if not kernels.exists():
        kernels.symlink_to(Path("..", "kernels"))


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(command: list[str], folder: Path, seed: int, seconds: float) -> tuple[int | None, str]:
    """How a command ends, None where it does not in time, and what it printed."""
    changed = {
        "PYTHONPATH": str(folder),
        "MIM4DD_TEST_SEED": str(seed),
        "CXXFLAGS": "-O1",  # compiled more often than run
    }
    environment = {**os.environ, **changed}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=limit_memory,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        return None, ""
    finally:  # on an interrupt too; its children go with it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Trial:
    """A copy of the tree whose tests pass, in which mutants are tried."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.seconds: dict[tuple[str, ...], float] = {}  # of tests without a mutant
        copy_tree(folder)
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        if run(command, self.folder, self.seed, BUILD_SECONDS)[0] != 0 or not self.compiles():
            raise SystemExit("the tree does not compile as it is")
        self.program = self.compiled()

    def compiles(self) -> bool:
        """Compile anew what the tests run, which is the widest instruction set of this CPU alone.

        The others, two thirds of the work, stay as they are.
        """
        objects = self.folder / "build" / "objects"
        files = [str(path) for path in sorted(objects.glob("c*/*.o"))]
        others = tuple(f"isa-{name}.o" for name in instruction_sets.split()[:-1])
        wanted = [x for x in files if "/cpu/" in x and not x.endswith(others)]
        libraries = [f"-L{path}" for path in library_paths()] + ["-lc10", "-ltorch", "-ltorch_cpu"]
        program = str(self.folder / EXTENSION)
        steps = (
            [sys.executable, "-m", "ninja", "-C", str(objects / "cpu"), *wanted],
            ["c++", "-shared", *files, *libraries, "-o", program],
        )
        return all(run(step, self.folder, self.seed, BUILD_SECONDS)[0] == 0 for step in steps)

    def compiled(self) -> str:
        return hashlib.sha1((self.folder / EXTENSION).read_bytes()).hexdigest()

    def run_tests(self, tests: list[str], seconds: float) -> tuple[int | None, str]:
        options = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
        return run([*options, *tests], self.folder, self.seed, seconds)

    def limit(self, tests: list[str]) -> float:
        """Seconds after which a mutant hangs."""
        if tuple(tests) not in self.seconds:
            self.compiles()  # without the last mutant
            start = time.monotonic()
            code, output = self.run_tests(tests, 3600)
            if code != 0:
                raise SystemExit(f"without a mutant, {' '.join(tests)} must pass:\n{output}")
            self.seconds[tuple(tests)] = time.monotonic() - start
        return 30 + 4 * self.seconds[tuple(tests)]

    def outcome(self, mutant: Mutant, text: str) -> dict[str, str]:
        """Whether the tests notice, and which one did first."""
        tests, path = tests_of(mutant.file), self.folder / mutant.file
        seconds = self.limit(tests)
        path.write_text(mutant.of(text))
        try:
            if mutant.file.startswith("csrc/"):
                if not self.compiles():
                    return {"outcome": "does not compile"}
                if self.compiled() == self.program:
                    return {"outcome": "equivalent"}
            code, output = self.run_tests(tests, seconds)
        finally:
            path.write_text(text)
        if code is None:
            return {"outcome": "timeout"}
        if code == 0:
            return {"outcome": "survived"}
        failed = [line.split()[1] for line in output.splitlines() if line.startswith("FAILED")]
        return {"outcome": "killed", "by": failed[0] if failed else f"exit {code}"}


def drawn(patterns: list[str], seed: int, limit: int) -> list[tuple[Mutant, str]]:
    """So many mutants and the text of their file, by file: one compilation serves the next."""
    every = []
    rooms = ("csrc", "kernels", "mim4dd/ops", "mim4dd/distill")
    for path in sorted(path for room in rooms for path in (ROOT / room).rglob("*")):
        file = path.relative_to(ROOT).as_posix()
        fits = any(fnmatch.fnmatch(file, pattern) for pattern in patterns)
        if fits and path.suffix in (".h", ".inl", ".cpp", ".py") and tests_of(file):
            text = path.read_text()
            every += [(mutant, text) for mutant in mutants_of(file, text)]
    random.Random(seed).shuffle(every)
    return sorted(every[:limit])


def results_in(path: Path) -> list[dict[str, str]]:
    """The last line of each mutant, without one that was being written when a run was killed."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    lines = [json.loads(line) for line in whole.splitlines()]
    return list({line["key"]: line for line in lines}.values())


def report(path: Path) -> None:
    """Killed and hung mutants among those that changed the program, by folder; and who survived."""
    lines = results_in(path)
    for folder in sorted({line["file"].rpartition("/")[0] for line in lines}):
        found = Counter(x["outcome"] for x in lines if x["file"].rpartition("/")[0] == folder)
        caught = found["killed"] + found["timeout"]
        print(f"{folder}: {caught} of {caught + found['survived']} caught, {dict(found)}")
    for line in lines:
        if line["outcome"] == "survived":
            change = f"{line['before']!r} -> {line['after']!r}"
            print(f"survived: {line['key']} {line['file']}:{line['line']} {change}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", nargs="+", default=["*"], help="patterns of sources")
    parser.add_argument("--limit", type=int, default=200, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the tests")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutation")
    parser.add_argument("--again", action="store_true", help="try survivors once more")
    parser.add_argument("--report", action="store_true", help="print the results so far")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    results = folder / "results.jsonl"
    if arguments.report:
        return report(results)
    folder.mkdir(parents=True, exist_ok=True)
    lines = results_in(results)
    done = {x["key"] for x in lines if not (arguments.again and x["outcome"] == "survived")}
    trial = Trial(folder / "tree", arguments.seed)
    for mutant, text in drawn(arguments.files, arguments.seed, arguments.limit):
        described = mutant.described(text)
        if described["key"] in done:
            continue
        line = json.dumps({**described, **trial.outcome(mutant, text)})
        with results.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)
    report(results)


if __name__ == "__main__":
    main()
