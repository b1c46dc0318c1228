"""A plugin of pytest that appends each test or benchmark to the results of a stage.

python -m pytest -p stages.notes --results results.jsonl --stage NAME …
"""

import os
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from stages.records import (
    AGAIN,
    BEGUN,
    FAILED,
    OK,
    SKIPPED,
    TEXT,
    Record,
    Results,
    loses_gpu,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stages")
    group.addoption("--results", type=Path, required=True, help="file to append to")
    group.addoption("--stage", required=True, help="name of the stage")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Notes(config.getoption("results"), config.getoption("stage")))


class _Notes:
    def __init__(self, path: Path, stage: str) -> None:
        self._results, self._stage = Results(path), stage
        self._status, self._error, self._found = OK, "", {}

    @pytest.hookimpl(trylast=True)  # of what is left to run
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Go on behind what was begun."""
        begun = self._results.cases(self._stage)
        done = [item for item in items if (self._stage, item.nodeid) in begun]
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item not in done]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self._results.append(Record(self._stage, item.nodeid, BEGUN))
        self._status, self._error, self._found = OK, "", {}
        started = time.perf_counter()
        result = yield
        seconds = time.perf_counter() - started
        found = self._status, seconds, self._error, self._found
        self._results.append(Record(self._stage, item.nodeid, *found))
        if self._status == FAILED and loses_gpu(self._error):
            os._exit(AGAIN)  # all that follows in this process would fail
        return result

    @pytest.hookimpl(tryfirst=True)  # before the fixtures are gone
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        self._found = _timed(item)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._status, self._error = FAILED, report.longreprtext[-TEXT:]
        elif report.skipped and self._status == OK:
            reason = getattr(report, "wasxfail", "") or report.longrepr
            self._status = SKIPPED
            self._error = str(reason[2] if isinstance(reason, tuple) else reason)[-TEXT:]


def _timed(item: pytest.Item) -> dict[str, object]:
    """What pytest-benchmark holds of it, where it was timed, in the form of its result file."""
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if benchmark is None or benchmark.stats is None:
        return {}
    return {
        "extra_info": benchmark.extra_info,
        "stats": {"median": benchmark.stats.stats.median},
    }
