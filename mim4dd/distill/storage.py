"""Files that are either whole or not there: atomic writes, and tensors without pickles."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

__all__ = [
    "load_tensors",
    "open_tensors",
    "read_header",
    "read_json",
    "save_tensors",
    "write_atomically",
    "write_json",
]

_HEADER = "mim4dd"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at any moment, crash or full disk included, it is the old or the new.

    Raises:
        OSError: If it cannot be written; what stood at ``path`` before still does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(
                error.errno, f"{path} could not be written ({error.strerror}); what it held is kept"
            ) from error
        raise
    # The rename itself is durable only once the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: If the file is not there or does not hold one.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able header into one safetensors file, atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One key: safetensors writes several in random order, and equal sets must give equal files.
    header = {_HEADER: json.dumps(metadata)}
    write_atomically(path, safetensors.torch.save(contiguous, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote: the tensors, on the CPU, and the header.

    Raises:
        ValueError: If the file is not there, truncated or not a safetensors file.
    """
    with open_tensors(path) as file:
        names = file.keys()  # a file of safetensors is no mapping
        return {name: file.get_tensor(name) for name in names}, read_header(file)


def open_tensors(path: Path) -> Any:
    """Open a safetensors file for reading parts of it, memory-mapped.

    Raises:
        ValueError: If the file is not there, truncated or not a safetensors file.
    """
    try:
        return safetensors.safe_open(str(path), framework="pt")
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error


def read_header(file: Any) -> dict[str, Any]:
    """The header of a file from :func:`open_tensors`; empty where another program wrote it."""
    return dict(json.loads((file.metadata() or {}).get(_HEADER, "{}")))
