"""What stages find, as lines of JSON: a case is a line when it begins and another when it ends.

The lines are appended one by one, by any number of processes. So whatever is killed, and when, the
file holds every case that had ended, and names the one that was on.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

BEGUN, OK, FAILED, SKIPPED = "begun", "ok", "failed", "skipped"
STOPPED = "stopped"  # by the limit of its stage or its own, or by a crash
AGAIN = 75  # exit status: start me again, the GPU is lost to this process
TEXT = 2000  # characters of an error; its end tells most


class Record(NamedTuple):
    """What is known of a case."""

    stage: str
    case: str
    status: str
    seconds: float = 0.0
    error: str = ""
    found: dict[str, Any] = {}  # noqa: RUF012 (a NamedTuple's default is never changed)


class Results:
    """The file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record) -> None:
        """In one write, so that lines of several processes do not mix."""
        line = json.dumps(record._asdict()) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def cases(self, stage: str | None = None) -> dict[tuple[str, str], Record]:
        """The last record of each case, in the order begun, of one stage or of all."""
        text = self.path.read_bytes() if self.path.exists() else b""
        found: dict[tuple[str, str], Record] = {}
        for record in records_of(text):
            if stage in (None, record.stage):
                found[record.stage, record.case] = record
        return found


def records_of(text: bytes) -> Iterable[Record]:
    """The records of some lines; what a dying machine left half written is none."""
    for line in text.split(b"\n"):
        try:
            yield Record(**json.loads(line))
        except (ValueError, TypeError):
            continue


Case = tuple[str, Callable[[], dict[str, Any]]]


def run_cases(results: Results, stage: str, cases: Iterable[Case]) -> None:
    """Run those that were not begun before; a failure is noted, and the next begins."""
    before = results.cases(stage)
    for name, call in cases:
        if (stage, name) not in before:
            run_case(results, stage, name, call)


def run_case(results: Results, stage: str, name: str, call: Callable[[], dict[str, Any]]) -> None:
    """Run one. Where the GPU is lost to the process, that ends, to be started again."""
    results.append(Record(stage, name, BEGUN))
    started = time.perf_counter()
    try:
        found = call()
    except Exception as error:
        text = f"{''.join(traceback.format_exception_only(error))}{_place(error)}"
        seconds = time.perf_counter() - started
        results.append(Record(stage, name, FAILED, seconds, text[-TEXT:]))
        if loses_gpu(text):
            sys.exit(AGAIN)
    else:
        results.append(Record(stage, name, OK, time.perf_counter() - started, found=found))


def _place(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-2:])


def loses_gpu(text: str) -> bool:
    """Whether no later call of the process will reach the GPU: errors of kernels stay."""
    lost = ("CUDA error", "illegal memory access", "unspecified launch failure", "misaligned addr")
    return any(each in text for each in lost) and "out of memory" not in text
