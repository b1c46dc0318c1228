"""A pytest plugin that notes what Triton would compile for the launches of the tests.

``pytest --record-launches FILE`` in tests/conftest.py turns it on, where Triton interprets.
bench/compile_launches.py compiles what is in the file.
"""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton.language as tl
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import BaseBackend
from triton.runtime.interpreter import InterpretedFunction

import mim4dd.kernels

CAPABILITY, MULTIPROCESSORS = 90, 132  # of an H200
Record = dict[str, Any]


def kernel_modules() -> list[ModuleType]:
    """All of mim4dd.kernels."""
    names = [module.name for module in pkgutil.iter_modules(mim4dd.kernels.__path__)]
    return [importlib.import_module(f"mim4dd.kernels.{name}") for name in names]


def pretend_h200() -> None:
    """Let the launchers choose tiles and parts as on that GPU; a test may still say another."""
    for module in kernel_modules():
        for name, answer in (("capability", CAPABILITY), ("num_multiprocessors", MULTIPROCESSORS)):
            if hasattr(module, name):
                setattr(module, name, lambda device, answer=answer: answer)


class LaunchRecorder:
    """Counts the launches of every specialisation, over the processes of pytest-xdist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[str, int] = {}  # by the record as JSON
        self.tests: dict[str, str] = {}  # the first that made it
        self.test = ""
        self.modules = [each for each in kernel_modules() if hasattr(each, "capability")]
        self.usual = self.capabilities()
        run = InterpretedFunction.run

        def recorded(kernel: InterpretedFunction, *args: Any, **options: Any) -> Any:
            told = self.capabilities() - self.usual or self.usual
            self.note(json.dumps(record_of(kernel, max(told), args, options)))
            return run(kernel, *args, **options)

        InterpretedFunction.run = recorded

    def capabilities(self) -> set[int]:
        """What the launchers take the GPU for: one number, and another where a test says so."""
        return {module.capability(torch.device("cpu")) for module in self.modules}

    def note(self, record: str, count: int = 1, test: str = "") -> None:
        """Count launches."""
        self.counts[record] = self.counts.get(record, 0) + count
        self.tests.setdefault(record, test or self.test)

    def pytest_runtest_setup(self, item: Any) -> None:
        self.test = item.nodeid

    def pytest_sessionfinish(self, session: Any) -> None:
        found = [(record, n, self.tests[record]) for record, n in self.counts.items()]
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["launches"] = json.dumps(found)
            return
        lines = [
            json.dumps({**json.loads(record), "launches": n, "test": test})
            for record, n, test in sorted(found)
        ]
        self.path.write_text("".join(f"{line}\n" for line in lines), "utf-8")

    def pytest_testnodedown(self, node: Any) -> None:
        found = getattr(node, "workeroutput", {}).get("launches", "[]")  # none of one that crashed
        for record, count, test in json.loads(found):
            self.note(record, count, test)


def record_of(
    kernel: InterpretedFunction, capability: int, args: tuple[Any, ...], options: Record
) -> Record:
    """What a launch makes Triton compile, as its launcher finds it.

    An argument, or a field of one, is named by its place, as in a Compilation.
    """
    signature = inspect.signature(kernel.fn)
    options = {name: value for name, value in options.items() if name not in ("grid", "warmup")}
    named = {name: options.pop(name) for name in signature.parameters if name in options}
    bound = signature.bind(*args, **named)
    bound.apply_defaults()
    types: dict[str, Any] = {}
    constants, divisible = [], []
    never = kernel.kwargs["do_not_specialize"] or ()
    for index, (name, value) in enumerate(bound.arguments.items()):
        if signature.parameters[name].annotation is tl.constexpr:
            found = ("constexpr", None)
        else:
            found = native_specialize_impl(BaseBackend, value, False, name not in never, True)
        types[name] = found[0]
        for place, kind, key, constant in leaves((index,), *found, value):
            if kind == "constexpr":
                constants.append([place, as_json(constant)])
            elif key == "D":  # by 16
                divisible.append(place)
    return {
        "module": kernel.fn.__module__,
        "kernel": kernel.fn.__name__,
        "capability": capability,
        "signature": types,
        "constants": constants,
        "divisible": divisible,
        "options": dict(sorted(options.items())),
    }


def leaves(
    place: tuple[int, ...], kind: Any, key: Any, value: Any
) -> Iterator[tuple[tuple[int, ...], str, Any, Any]]:
    """The argument, or its fields."""
    if isinstance(kind, str):
        yield place, kind, key, value
        return
    for index, parts in enumerate(zip(kind, key, value, strict=True)):
        yield from leaves((*place, index), *parts)


def as_json(value: Any) -> Any:
    """A constant; of a NamedTuple its module, name and fields, as of a GPU."""
    if hasattr(value, "_fields"):
        if "INTERPRETED" in value._fields:
            value = value._replace(INTERPRETED=False)
        return [type(value).__module__, type(value).__name__, list(value)]
    return value
