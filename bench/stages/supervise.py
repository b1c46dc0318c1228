"""Running stages: each to its end or its limit, and again after a case that took it down."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stages import PARENT
from stages.records import AGAIN, BEGUN, STOPPED, Record, Results, records_of

POLL = 0.1  # seconds


class Stage(NamedTuple):
    """A command that appends cases of this name to the results."""

    name: str
    command: tuple[str, ...]
    limit: float  # seconds, of all its cases
    case_limit: float = 60  # seconds without a line from it
    finished: tuple[int, ...] = (0,)  # exit statuses after which there is no case left


class Ended(NamedTuple):
    """How a stage ended."""

    seconds: float
    reason: str  # why before its last case; empty where it did not


class Follower:
    """What was appended of a stage since the last look."""

    def __init__(self, results: Results, stage: str) -> None:
        self._path, self._stage = results.path, stage
        self._read = results.path.stat().st_size if results.path.exists() else 0

    def lines(self) -> int:
        """How many whole ones."""
        if not self._path.exists():
            return 0
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        return sum(record.stage == self._stage for record in records_of(whole))


def supervise(stage: Stage, results: Results, log: Path, limit: float) -> Ended:
    """Run a stage, for ``limit`` seconds at most if that is less than its own.

    What crashes or hangs is closed as a case that was stopped, and the stage starts again behind
    it: it skips what was begun.
    """
    started = time.monotonic()
    end = started + min(stage.limit, limit)
    reason = ""
    while True:
        status = _run(stage, results, log, end)
        closed = _close(results, stage.name, _told(status))
        if status in stage.finished:
            break
        if time.monotonic() >= end:
            reason = f"stopped after {min(stage.limit, limit):.0f} s"
            break
        if not closed and status != AGAIN:
            reason = f"{_told(status)}, in no case"
            break
    return Ended(time.monotonic() - started, reason)


def _run(stage: Stage, results: Results, log: Path, end: float) -> int | str:
    """Exit status; text where a limit came first."""
    follower = Follower(results, stage.name)
    with log.open("ab") as out:
        # A session of its own, so that a kill reaches all that it has started.
        process = subprocess.Popen(
            stage.command,
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {PARENT: str(os.getpid())},
        )
        last = time.monotonic()
        try:
            while process.poll() is None:
                now = time.monotonic()
                if follower.lines():
                    last = now
                if now >= end:
                    return "the limit of the stage came"
                if now >= last + stage.case_limit:
                    return f"nothing happened for {stage.case_limit:.0f} s"
                time.sleep(POLL)
        finally:
            _kill(process)
    return process.returncode


def _kill(process: subprocess.Popen) -> None:
    """And what it has started, which may outlive it."""
    with suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _told(status: int | str) -> str:
    if isinstance(status, str):
        return status
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _close(results: Results, stage: str, why: str) -> int:
    """End the cases that were on; how many."""
    open_ones = [each for each in results.cases(stage).values() if each.status == BEGUN]
    for each in open_ones:
        results.append(Record(stage, each.case, STOPPED, error=why))
    return len(open_ones)


def supervise_all(
    stages: Sequence[Stage], results: Results, log: Path, limit: float, workers: int
) -> Ended:
    """Some stages, several at a time, for ``limit`` seconds at most."""
    started = time.monotonic()

    def one(stage: Stage) -> str:
        left = started + limit - time.monotonic()
        if left <= 0:
            return f"{stage.name}: not begun"
        ended = supervise(stage, results, log, left)
        return f"{stage.name}: {ended.reason}" if ended.reason else ""

    with ThreadPoolExecutor(workers) as pool:
        reasons = [reason for reason in pool.map(one, stages) if reason]
    return Ended(time.monotonic() - started, "; ".join(reasons))
