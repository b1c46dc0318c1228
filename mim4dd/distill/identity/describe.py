"""What a run is of, as values that a file holds and a later call compares."""

import functools
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from enum import Enum
from itertools import zip_longest
from pathlib import PurePath
from types import MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.identity.code import code_identity
from mim4dd.distill.identity.data import describe_data
from mim4dd.fused import fuse

__all__ = [
    "Difference",
    "describe",
    "describe_network",
    "describe_object",
    "differences",
    "named_differences",
]

# Of lists of floats, which are sums over a whole data set: rounding differs between machines.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5
# What these hold are caches, or follows from what an object's other attributes are.
_INTERNAL = ("mim4dd._", "torch.")
# Objects of Python's own library hold the process's state, as a logger does all loggers; but these
# hold what a user gave them.
_NAMESPACES = ("argparse", "types")
# What norm layers gather as they train.
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")
# Packages and modules in the name of one of mim4dd's own, whose classes alone have capitals.
_MODULES = re.compile(r"^mim4dd\.(?:[a-z_][a-z0-9_]*\.)+")
# Classes by other names than they had when a run noted them.
_RENAMED = {"mim4dd.distill.augment.DSA": "mim4dd.Augmentation"}
_MOST_NAMED = 6
_LONGEST = 100


class Difference(NamedTuple):
    """A value by its path, as stored and as asked for; ``absent`` where one side has none."""

    path: str
    stored: Any
    asked: Any

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]

    def __str__(self) -> str:
        if self.name == "content":  # sums, which say nothing to anyone
            return f"{self.path} (other samples or other labels of them)"
        if isinstance(self.stored, Mapping) and self.asked in (None, _ABSENT):
            return f"{self.path} (not asked for)"  # a dictionary would be cut off
        if isinstance(self.asked, Mapping) and self.stored in (None, _ABSENT):
            return f"{self.path} (not stored)"
        return f"{self.path}: {_short(self.stored)} → {_short(self.asked)}"


class _Absent:
    def __repr__(self) -> str:
        return "none"


_ABSENT = _Absent()


def describe(value: Any) -> Any:
    """What a value is, as JSON holds it. An object may say so itself, by a method ``identity``."""
    return _describe(value, frozenset())


def describe_object(value: object, without: Iterable[str] = ()) -> dict[str, Any]:
    """The class of an object, what a user's class does, and its attributes but some."""
    return _object(value, frozenset(without), frozenset((id(value),)))


def describe_network(network: nn.Module) -> dict[str, str]:
    """Every layer of a network in words, without what changes as it trains.

    Frozen weights count, and so do buffers and attributes; learned weights, the running statistics
    of norm layers and attributes with a leading underscore, which hold a last call, do not. What
    :func:`mim4dd.fuse` makes of a network is described as the network is.
    """
    return _network(network, frozenset())


def _network(network: nn.Module, inside: frozenset[int]) -> dict[str, str]:
    canonical = deepcopy(network)
    fuse(canonical)
    inside |= set(map(id, canonical.modules()))
    return {
        name or "network": _layer(module, inside)
        for name, module in canonical.named_modules()
        if not isinstance(module, nn.Identity)
    }


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Difference]:
    """What differs between two descriptions, in the order of the second."""
    return list(_walk(stored, json.loads(json.dumps(asked)), ""))


def named_differences(found: Iterable[Difference]) -> str:
    """Differences for a message, stored → asked for; of many the first ones."""
    lines = list(map(str, found))
    more = len(lines) - _MOST_NAMED
    return "; ".join(lines[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _describe(value: Any, inside: frozenset[int]) -> Any:
    """``inside`` are the objects that hold this one, at which a cycle ends."""
    plain = _plain(value)
    if plain is not _ABSENT:
        return plain
    if id(value) in inside:
        return type(value).__qualname__
    inside |= {id(value)}
    if isinstance(value, nn.Module):
        return _network(value, inside)
    own = getattr(value, "identity", None)
    if callable(own) and not isinstance(value, type):
        return own()
    if isinstance(value, Mapping):
        return {str(key): _describe(part, inside) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_describe(part, inside) for part in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(_describe(part, inside)) for part in value)
    if isinstance(value, functools.partial):
        given = [*value.args, value.keywords]
        return {"call": _describe(value.func, inside), "given": _describe(given, inside)}
    if isinstance(value, MethodType):
        return {
            "call": _of_kind(value.__func__, inside),
            "self": _describe(value.__self__, inside),
        }
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return _of_kind(value, inside)
    return _object(value, frozenset(), inside)


def _plain(value: Any) -> Any:
    """The description of what holds no other objects."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (complex, bytes, range, Enum, PurePath, torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {_digest(value.tobytes())}"
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, ImageData):
        return describe_data(value)
    return _ABSENT


def _object(value: object, without: frozenset[str], inside: frozenset[int]) -> dict[str, Any]:
    kind = _of_kind(type(value), inside)
    attributes = {
        name: _describe(part, inside)
        for name, part in _attributes(value).items()
        if name not in without
    }
    return {"class": kind["name"], "code": kind["code"], **attributes}


def _attributes(value: object) -> dict[str, Any]:
    """What an object holds, in ``__dict__`` and in slots."""
    module = type(value).__module__
    package = module.partition(".")[0]
    of_python = package in sys.stdlib_module_names and package not in _NAMESPACES
    if of_python or module.startswith(_INTERNAL):
        return {}
    slots = [
        name
        for kind in reversed(type(value).__mro__)
        for name, member in vars(kind).items()
        if isinstance(member, MemberDescriptorType) and hasattr(value, name)
    ]
    return {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})


def _of_kind(value: Any, inside: frozenset[int]) -> dict[str, Any]:
    code = code_identity(value, functools.partial(_describe, inside=inside))
    return {
        "name": _lasting(f"{getattr(value, '__module__', None)}.{value.__qualname__}"),
        "code": code,
    }


def _lasting(name: str) -> str:
    """The name of a function or class, of mim4dd's own without the module, which may move."""
    return _MODULES.sub("mim4dd.", _RENAMED.get(name, name))


def _tensor(tensor: Tensor) -> str:
    if tensor.numel() == 1:  # said by itself, as a number would be
        return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.item()}"
    content = tensor.detach().cpu().contiguous()
    digest = _digest(content.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{tensor.dtype} {tuple(tensor.shape)} {digest}"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _layer(module: nn.Module, inside: frozenset[int]) -> str:
    # Not extra_repr, which newer versions of torch word otherwise.
    parts = [
        f"{name}={_attribute(part, inside)}"
        for name, part in sorted(vars(module).items())
        if name[0] != "_" and name != "training" and part is not None
    ]
    parts += [f"{name} {_weight(part)}" for name, part in module.named_parameters(recurse=False)]
    parts += [
        f"{name} {_weight(part)}"
        for name, part in module.named_buffers(recurse=False)
        if name[0] != "_" and name not in _RUNNING
    ]
    code = _of_kind(type(module), inside)["code"]
    return f"{type(module).__name__}({', '.join(parts)})" + (f" [{code}]" if code else "")


def _attribute(value: Any, inside: frozenset[int]) -> Any:
    if isinstance(value, Tensor):
        return _weight(value)
    described = _describe(value, inside)
    return tuple(described) if isinstance(value, tuple) else described


def _weight(tensor: Tensor) -> str:
    """The values of a tensor, or the shape alone of one that is learned or follows from such."""
    return str(tuple(tensor.shape)) if tensor.requires_grad else _tensor(tensor)


def _walk(stored: Any, asked: Any, path: str) -> Iterator[Difference]:
    if isinstance(stored, Mapping) and isinstance(asked, Mapping):
        for key in {**asked, **stored}:
            inner = f"{path}.{key}" if path else key
            yield from _walk(stored.get(key, _ABSENT), asked.get(key, _ABSENT), inner)
    elif isinstance(stored, list) and isinstance(asked, list) and not _floats(stored + asked):
        for index, (one, other) in enumerate(zip_longest(stored, asked, fillvalue=_ABSENT)):
            yield from _walk(one, other, f"{path}[{index}]")
    elif not _equal(stored, asked):
        yield Difference(path, stored, asked)


def _floats(value: list[Any]) -> bool:
    return all(isinstance(part, float) for part in value)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return all(
            abs(one - other) <= _RELATIVE * abs(one) + _ABSOLUTE
            for one, other in zip(first, second, strict=True)
        )
    if isinstance(first, str) and isinstance(second, str):
        return _lasting(first) == _lasting(second)  # what an older mim4dd stored has the modules
    # JSON writes 1.0 as 1, but True is no number.
    return isinstance(first, bool) == isinstance(second, bool) and first == second


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
