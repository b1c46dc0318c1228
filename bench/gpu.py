"""Build, test and benchmark on the GPU of this machine, with the Python and packages it has.

    make gpu PYTHON=python3

Writes bench/results/<gpu>-<commit>.json and .md. Needs no network. Exits with an error if the
build or a test fails; then the benchmarks that ran are still written, marked as such.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import report
import torch
from rows import load_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
TEST_LIMIT = 270  # seconds
LIMIT = 550  # of build, tests and benchmarks together, so that a ten-minute lease holds them
FIRST = ("bench_unroll_sgd.py", "bench_norm_relu_pool.py")  # the limit cuts off what comes last
TOO_LONG = "unroll_sgd and torch.compile"  # minutes to compile a step and its adjoint


def build() -> None:
    """Install the working tree for the GPU that is there; nothing is fetched."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    command += ["--no-index", "--editable", str(ROOT)]
    subprocess.run(command, check=True, env=os.environ | {"MIM4DD_CUDA": "1"})


def run(command: list[str], limit: float) -> int | None:
    """Exit status; None where the limit came first and the command was interrupted.

    Interrupted as by Ctrl-C, so that pytest still writes down what it has; once more where a test
    took the first one for its own failure.
    """
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        print(f"stopped after {limit:.0f} s: {' '.join(command)}", file=sys.stderr)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        try:
            process.wait(15)
            return None
        except subprocess.TimeoutExpired:
            pass
    process.kill()
    return None


def run_tests(folder: Path) -> dict[str, object]:
    """Run all tests but the CPU's, which CI runs; how many passed, and the names of the others."""
    junit = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "tests", "-q", f"--junit-xml={junit}"]
    command += ["-k", "not cpu and not conv3x3"]
    command += ["--ignore=tests/test_adapters.py"]  # no kernels of their own; needs tests/peers.txt
    command += ["--continue-on-collection-errors"]  # a missing package fails its own tests alone
    status = run(command, TEST_LIMIT)
    if not junit.exists():
        return {"status": status, "passed": 0, "skipped": 0, "failed": ["no test report"]}
    cases = list(ElementTree.parse(junit).getroot().iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failed) - skipped
    return {"status": status, "passed": passed, "skipped": skipped, "failed": failed}


def run_benchmarks(folder: Path, limit: float) -> dict[str, object]:
    """Run every benchmark, on fewer cases; pytest-benchmark's result, with the exit status."""
    results = folder / "bench.json"
    suites = sorted(sorted((ROOT / "bench").glob("bench_*.py")), key=lambda s: s.name not in FIRST)
    command = [sys.executable, "-m", "pytest", *map(str, suites), "-q", "--short", "--repeats=3"]
    command += ["-k", f"not ({TOO_LONG})", f"--benchmark-json={results}"]
    status = run(command, limit)
    if not results.exists() or results.stat().st_size == 0:
        return {"status": status, "benchmarks": []}
    return json.loads(results.read_bytes()) | {"status": status}


def summary(name: str, results: dict) -> str:
    """The results for people."""
    tests, seconds = results["tests"], results["seconds"]
    lines = [
        f"# {name}",
        "",
        "```",
        str(results["doctor"]).strip(),
        "```",
        "",
        f"Tests: {tests['passed']} passed, {tests['skipped']} skipped, "
        f"{len(tests['failed'])} failed.",
        *(f"- {failure}" for failure in tests["failed"]),
        "",
        "Seconds: " + ", ".join(f"{part} {value:.0f}" for part, value in seconds.items()) + ".",
        "",
        report.markdown(load_rows([results])) if results["benchmarks"] else "No benchmarks.",
        report.not_timed([results]),
        f"Left to `make bench-unroll`, for it takes minutes to compile: {TOO_LONG}.",
    ]
    return "\n".join(lines) + "\n"


def write(results: dict) -> str:
    """Write both files; return the text of the second."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower()
    name = f"{gpu}-{head or 'uncommitted'}"
    text = summary(name, results)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1), "utf-8")
    (RESULTS / f"{name}.md").write_text(text, "utf-8")
    return text


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Note how long a part took."""
    started = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - started


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("make gpu needs a CUDA GPU and a CUDA build of torch, PyTorch sees none")
    seconds: dict[str, float] = {}
    with timed(seconds, "build"):
        build()
    doctor = subprocess.run(
        [sys.executable, "-m", "mim4dd", "doctor"], capture_output=True, text=True, check=False
    )
    with tempfile.TemporaryDirectory() as folder:
        with timed(seconds, "tests"):
            tests = run_tests(Path(folder))
        with timed(seconds, "benchmarks"):
            benchmarks = run_benchmarks(Path(folder), LIMIT - sum(seconds.values()))
    report_text = doctor.stdout + doctor.stderr
    print(write(benchmarks | {"doctor": report_text, "tests": tests, "seconds": seconds}))
    sys.exit(1 if doctor.returncode or tests["status"] != 0 or benchmarks["status"] != 0 else 0)


if __name__ == "__main__":
    main()
