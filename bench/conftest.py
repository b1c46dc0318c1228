"""The benchmark harness: providers side by side, interleaved, checked before they are timed.

A module bench_<op>.py holds ``CASES`` ({"full": […], "tiny": […]}) and ``PROVIDERS``; its function
takes ``case``, ``provider``, ``device`` and ``measure``.
"""

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch
from peak_memory import peak_memory

_ROUNDS = 5
_ROUND_SECONDS = 0.05  # long against the timer, and against one launch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mim4dd")
    group.addoption("--tiny", action="store_true", help="tiny shapes: do the benchmarks run?")
    group.addoption("--repeats", type=int, default=5, help="times that all providers take turns")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "measure" not in metafunc.fixturenames:
        return
    tiny = metafunc.config.getoption("--tiny")
    metafunc.parametrize("case", metafunc.module.CASES["tiny" if tiny else "full"], ids=str)
    metafunc.parametrize("repeat", range(1 if tiny else metafunc.config.getoption("--repeats")))
    metafunc.parametrize("provider", metafunc.module.PROVIDERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let providers take turns: ours, theirs, ours, theirs. A drift of the machine hits them all.

    The order is explicit because pytest regroups parameters on its own.
    """
    benches = [item for item in items if "measure" in getattr(item, "fixturenames", ())]
    order = {name: place for place, name in enumerate(dict.fromkeys(map(_suite, benches)))}
    benches.sort(key=lambda item: (order[_suite(item)], item.callspec.params["repeat"]))
    for item in benches:
        item.add_marker(pytest.mark.benchmark(group=_suite(item), timer=_finished_at))
    items[:] = [item for item in items if item not in benches] + benches


def _finished_at() -> float:
    """The time at which everything launched so far is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _suite(item: pytest.Item) -> str:
    return f"{item.function.__name__}[{item.callspec.params['case']}]"


@pytest.fixture(scope="session")
def device() -> str:
    """The GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def repeat(request: pytest.FixtureRequest) -> int:
    """Which turn this is."""
    return request.param


@pytest.fixture
def measure(benchmark: Any, device: str, repeat: int, request: pytest.FixtureRequest) -> Callable:
    """Check a provider's answer, then measure its peak memory and its time.

    ``measure(call, check, **info)``: ``check(call())`` raises where the answer is wrong, and then
    nothing is timed. ``info`` goes into the result file beside the figures.
    """

    def run(call: Callable[[], Any], check: Callable[[Any], None], **info: float) -> None:
        check(call())
        peak_bytes = peak_memory(call, device)
        seconds = _seconds(call)
        benchmark.pedantic(
            call,
            # The repeats alone are rounds enough for what takes long.
            rounds=max(1, min(_ROUNDS, round(_ROUNDS * _ROUND_SECONDS / seconds))),
            iterations=max(1, round(_ROUND_SECONDS / seconds)),
            warmup_rounds=1 if seconds < _ROUND_SECONDS else 0,
        )
        params = request.node.callspec.params
        benchmark.extra_info |= {
            "op": request.function.__name__.removeprefix("bench_"),
            "case": str(params["case"]),
            "provider": params["provider"],
            "repeat": repeat,
            "device": device,
            "peak_bytes": peak_bytes,
            **info,
        }

    return run


def _seconds(call: Callable[[], Any]) -> float:
    """Roughly what a call takes, once everything it compiles or allocates is there."""
    started = _finished_at()
    call()
    return _finished_at() - started


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Name what the figures depend on."""
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["cuda"] = torch.version.cuda
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()
    try:
        machine_info["triton"] = version("triton")
    except PackageNotFoundError:
        machine_info["triton"] = None
