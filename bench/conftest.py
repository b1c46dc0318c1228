"""The benchmark harness: providers side by side, interleaved, checked before they are timed.

A module bench_<op>.py holds ``CASES`` ({"full": […], "tiny": […]}, perhaps "short") and
``PROVIDERS``; its function takes ``case``, ``provider``, ``device`` and ``measure``. It may hold
``left_out(case, provider)``, the reason not to run a pair. A case may have ``threads``.
"""

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import providers
import pytest
import torch
from peak_memory import peak_memory
from torch.utils._pytree import tree_leaves

_ROUNDS = 5
_ROUND_SECONDS = 0.05  # long against the timer, and against one launch

_LONG_SECONDS = 0.5  # a call is not repeated only to learn how often to repeat it

_left_out: list[dict[str, str]] = []  # what was not timed, and why
_last_suite = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mim4dd")
    group.addoption("--tiny", action="store_true", help="tiny shapes: do the benchmarks run?")
    group.addoption("--short", action="store_true", help="fewer cases, where a suite has such")
    group.addoption("--repeats", type=int, default=5, help="times that all providers take turns")
    group.addoption("--provider", action="append", help="this one alone, or those, where it is")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "measure" not in metafunc.fixturenames:
        return
    tiny = metafunc.config.getoption("--tiny")
    cases = metafunc.module.CASES
    size = "tiny" if tiny else "short" if metafunc.config.getoption("--short") else "full"
    metafunc.parametrize("case", cases.get(size, cases["full"]), ids=str)
    metafunc.parametrize("repeat", range(1 if tiny else metafunc.config.getoption("--repeats")))
    wanted = metafunc.config.getoption("--provider") or metafunc.module.PROVIDERS
    metafunc.parametrize("provider", [name for name in metafunc.module.PROVIDERS if name in wanted])


@pytest.hookimpl(trylast=True)  # after -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let providers take turns: ours, theirs, ours, theirs. A drift of the machine hits them all.

    The order is explicit because pytest regroups parameters on its own.
    """
    unwanted = [item for item in items if _is_left_out(item)]
    config.hook.pytest_deselected(items=unwanted)
    items[:] = [item for item in items if item not in unwanted]
    benches = [item for item in items if "measure" in getattr(item, "fixturenames", ())]
    order = {name: place for place, name in enumerate(dict.fromkeys(map(_suite, benches)))}
    benches.sort(key=lambda item: (order[_suite(item)], item.callspec.params["repeat"]))
    for item in benches:
        item.add_marker(pytest.mark.benchmark(group=_suite(item), timer=_finished_at))
    items[:] = [item for item in items if item not in benches] + benches


def _is_left_out(item: pytest.Item) -> bool:
    """Whether its module leaves it out; noted once, not for every repeat."""
    if not hasattr(getattr(item, "module", None), "left_out"):
        return False
    params = item.callspec.params
    reason = item.module.left_out(params["case"], params["provider"])
    if reason is not None and params["repeat"] == 0:
        _note(item, reason)
    return reason is not None


def _note(item: pytest.Item, reason: str) -> None:
    """Keep for the result file why something was not timed."""
    _left_out.append(
        {
            "op": item.function.__name__.removeprefix("bench_"),
            "case": str(item.callspec.params["case"]),
            "provider": item.callspec.params["provider"],
            "reason": reason,
        }
    )


def pytest_report_collectionfinish() -> list[str]:
    """Name the peers that are not installed."""
    return list(providers.missing.values())


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Tell in the result file what was left out."""
    output_json["left_out"] = _left_out
    output_json["missing"] = list(providers.missing.values())


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
    nothing is timed. ``info``, and what ``check`` returns, go into the result file beside the
    figures. Where calls leave memory behind for the next, ``cold`` is one that finds none.
    """
    params = request.node.callspec.params

    def run(
        call: Callable[[], Any],
        check: Callable[[Any], dict | None],
        cold: Callable[[], Any] | None = None,
        **info: Any,
    ) -> None:
        started = _finished_at()
        answer = _checked(request.node, call)
        seconds = _finished_at() - started
        info |= _checked(request.node, check, answer) or {}
        if repeat == 0:  # it is the same every time
            info["peak_bytes"] = peak_memory(cold or call, device)
            info["result_bytes"] = sum(tensor.nbytes for tensor in tree_leaves(answer))
        del answer
        if repeat == 0 or seconds < _LONG_SECONDS:  # that one compiled, or was short for the timer
            seconds = _seconds(call)
        benchmark.pedantic(
            call,
            # The repeats alone are rounds enough for what takes long.
            rounds=max(1, min(_ROUNDS, round(_ROUNDS * _ROUND_SECONDS / seconds))),
            iterations=max(1, round(_ROUND_SECONDS / seconds)),
            warmup_rounds=1 if seconds < _ROUND_SECONDS else 0,
        )
        benchmark.extra_info |= info | {
            "op": request.function.__name__.removeprefix("bench_"),
            "case": str(params["case"]),
            "provider": params["provider"],
            "repeat": repeat,
            "device": device,
        }

    def run_on_threads(*args: Any, **info: Any) -> None:
        global _last_suite
        if _suite(request.node) != _last_suite:
            torch.compiler.reset()  # compile anew for each case, not once for all shapes
            _last_suite = _suite(request.node)
        before = torch.get_num_threads()
        torch.set_num_threads(getattr(params["case"], "threads", 0) or before)
        try:
            run(*args, **info)
        finally:
            torch.set_num_threads(before)

    return run_on_threads


def _checked(item: pytest.Item, call: Callable[..., Any], *args: Any) -> Any:
    """What the call gives. A peer's failure is noted; ours is an error, and with --tiny any is."""
    try:
        return call(*args)
    except Exception as error:
        ours = item.callspec.params["provider"].startswith("mim4dd")
        if ours or item.config.getoption("--tiny"):
            raise
        wrong = "wrong" if isinstance(error, AssertionError) else type(error).__name__
        reason = f"{wrong}: {str(error).strip().partition(chr(10))[0]}"
        if item.callspec.params["repeat"] == 0:
            _note(item, reason)
        pytest.xfail(reason)


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
