"""The expert files of MTT, TESLA, FTD and DATM: read without running what they hold, and written.

A ``replay_buffer_N.pt`` is a pickled list of trajectories; each is a list of the parameters before
training and after every epoch, and these are lists of tensors in ``network.parameters()`` order.
The files of a folder count up from 0. https://github.com/GeorgeCazenavette/mtt-distillation
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mim4dd.distill.data import ImageData
from mim4dd.distill.experts.buffer import (
    ExpertBuffer,
    expert_header,
    expert_path,
    first_mismatch,
    first_not_finite,
    parameter_shapes,
    require_kind,
    save_expert,
)
from mim4dd.distill.experts.check import check_expert
from mim4dd.distill.files.atomic import load_tensors, replacing
from mim4dd.distill.files.hold import hold
from mim4dd.distill.files.tensor_files import load_torch_file, save_torch
from mim4dd.distill.runtime.progress import progress_bar

__all__ = [
    "export_replay_buffers",
    "import_replay_buffers",
    "read_replay_buffer",
    "replay_buffer_paths",
]

Trajectory = Sequence[Sequence[Tensor]]

# MTT's save_interval.
_PER_FILE = 10


def replay_buffer_paths(folder: str | Path) -> list[Path]:
    """The files of a folder in the order of their numbers.

    Raises:
        ValueError: If there is none, or a number is left out: MTT would stop there.
    """
    folder = Path(folder)
    found = set(folder.glob("replay_buffer_*.pt"))
    paths = [_replay_path(folder, number) for number in range(len(found))]
    if not found:
        raise ValueError(f"{folder} must hold replay_buffer_0.pt and so on, got none")
    for path in paths:
        if path not in found:
            raise ValueError(f"{folder} must number its files from 0 on, {path.name} is missing")
    return paths


def read_replay_buffer(path: str | Path) -> list[Trajectory]:
    """Read one file, memory-mapped where its format allows that.

    Raises:
        ValueError: If it is truncated, or holds anything but lists, or tuples, of lists of lists of
            tensors; no code in it is run.
    """
    trajectories = load_torch_file(Path(path), mapped=True)
    for place, tensor in _leaves(trajectories, str(path)):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{place} must be a tensor, got {type(tensor).__name__}")
    # What shares memory in the file would not once it is converted.
    own = [trajectory for trajectory in trajectories if not _is_one_epoch(trajectory)]
    taken = sum(part.nbytes for timestamps in own for tensors in timestamps for part in tensors)
    if taken > Path(path).stat().st_size:
        raise ValueError(f"{path} must hold every parameter once, it has some in several places")
    return trajectories


def import_replay_buffers(
    source: str | Path,
    folder: str | Path,
    network: nn.Module,
    network_name: str,
    data_name: str,
    *,
    data: ImageData | None = None,
    cast: bool = False,
) -> ExpertBuffer:
    """Convert the ``replay_buffer_*.pt`` of ``source`` to the experts that ``folder`` then holds.

    All files are checked against the network before the first is converted, and the first expert
    is tested on ``data``: parameters whose shapes fit may be of another network all the same. A
    warning says that it is no better than chance, or that there were no data. An interrupted call
    continues where it stopped.

    Args:
        source: What MTT's ``buffer.py`` or a relative of it wrote.
        folder: Where the files go.
        network: The network that was trained there.
        network_name: What the experts shall say it is; a distillation must name the same.
        data_name: Likewise, of the data.
        data: The data, normalised as the experts saw them; the header of the first expert then has
            its test accuracy.
        cast: Convert parameters of another floating-point dtype, such as half precision, to the
            network's.

    Raises:
        ValueError: If a file is not readable, does not fit the network, differs in its epochs,
            holds a trajectory that diverged or never moves, or if ``folder`` holds other experts.
        BlockingIOError: If another process is at work in ``folder``.
    """
    folder = Path(folder)
    paths = replay_buffer_paths(source)
    require_kind(folder, expert_header(network_name, data_name, training=None))
    num_experts = _check_files(paths, network, cast)
    dtype = next(network.parameters()).dtype
    index, accuracy = 0, None
    if data is None:
        warnings.warn(
            "data was not given: whether the experts classify better than chance was not tested",
            stacklevel=2,
        )
    else:
        first = next(trajectory for path in paths for trajectory in read_replay_buffer(path))
        accuracy = check_expert(network, first[-1], data)
    with hold(folder), progress_bar(total=num_experts, desc="experts") as progress:
        for path in paths:
            for number, timestamps in enumerate(read_replay_buffer(path)):
                place = f"{path.name}, trajectory {number}"
                trajectory = _stack(timestamps, dtype, place)
                target = expert_path(folder, index)
                header = expert_header(network_name, data_name, training=None, source=place)
                if target.exists():
                    _require_same(target, load_tensors(target)[0]["trajectory"], trajectory)
                else:
                    known = accuracy if index == 0 else None
                    save_expert(target, trajectory, parameter_shapes(network), header, known)
                index += 1
                progress.update()
    return ExpertBuffer(folder)


def export_replay_buffers(source: str | Path, folder: str | Path) -> list[Path]:
    """Convert the experts of ``source`` to ``replay_buffer_*.pt`` files of ten, as MTT reads them.

    An interrupted call continues where it stopped.

    Returns:
        The files.

    Raises:
        ValueError: If ``source`` holds no experts, or ``folder`` files of others.
        BlockingIOError: If another process is at work in ``folder``.
    """
    experts, folder, paths = ExpertBuffer(source), Path(folder), []
    files = [range(len(experts))[at : at + _PER_FILE] for at in range(0, len(experts), _PER_FILE)]
    if _replay_path(folder, len(files)).exists():
        raise ValueError(f"{folder} holds more files than these experts make; choose another")
    with hold(folder), progress_bar(total=len(files), desc="files") as progress:
        for number, members in enumerate(files):
            path, shapes = _replay_path(folder, number), experts.parameter_shapes
            content = [_split(experts.trajectory(member), shapes) for member in members]
            if path.exists():
                _require_same(path, read_replay_buffer(path), content)
            else:
                with replacing(path) as file:
                    save_torch(content, file)
            paths.append(path)
            progress.update()
    return paths


def _replay_path(folder: Path, number: int) -> Path:
    return folder / f"replay_buffer_{number}.pt"


def _check_files(paths: Sequence[Path], network: nn.Module, cast: bool) -> int:
    """Require all trajectories to be of ``network`` and equally long; return how many there are."""
    dtypes = [parameter.dtype for parameter in network.parameters()]
    lengths: dict[int, str] = {}
    count = 0
    for path in paths:
        for number, timestamps in enumerate(read_replay_buffer(path)):
            place = f"{path}, trajectory {number}"
            lengths.setdefault(len(timestamps), place)
            for epoch, tensors in enumerate(timestamps):
                mismatch = first_mismatch([tensor.shape for tensor in tensors], network)
                if mismatch is not None:
                    raise ValueError(f"{place}, epoch {epoch} must fit the network: {mismatch}")
                if [tensor.dtype for tensor in tensors] != dtypes and not (
                    cast and all(tensor.is_floating_point() for tensor in tensors)
                ):
                    raise ValueError(
                        f"{place}, epoch {epoch} must be of the network's {dtypes[0]}, "
                        f"got {', '.join(sorted({str(tensor.dtype) for tensor in tensors}))}; "
                        "cast (--cast) converts floating-point numbers"
                    )
            count += 1
    if len(lengths) > 1:
        found = "; ".join(f"{length - 1} in {place}" for length, place in lengths.items())
        raise ValueError(f"all trajectories must have the same number of epochs, got {found}")
    if not lengths or min(lengths) < 2:
        raise ValueError(f"{paths[0].parent} must hold trajectories of at least one epoch")
    return count


def _stack(timestamps: Trajectory, dtype: torch.dtype, place: str) -> Tensor:
    """A trajectory as one tensor (epochs + 1, P), refused where it cannot be of a training."""
    if _is_one_epoch(timestamps):
        timestamps = timestamps[:2]  # which is refused below, at no more memory
    rows = [
        torch.cat([tensor.reshape(-1).to(dtype) for tensor in tensors]) for tensors in timestamps
    ]
    trajectory = torch.stack(rows).detach()
    epoch = first_not_finite(trajectory)
    if epoch is not None:
        raise ValueError(f"{place} must be finite, got inf or NaN in epoch {epoch}")
    if (trajectory == trajectory[0]).all():
        raise ValueError(
            f"{place} holds the same parameters in every epoch. MTT's buffer.py writes this when "
            "it runs on a CPU, where it stores views of the live weights instead of copies: the "
            "epochs are lost, and the experts must be trained again"
        )
    return trajectory


def _is_one_epoch(timestamps: Trajectory) -> bool:
    """Whether every epoch is the first one, in the same memory."""
    places = [[tensor.data_ptr() for tensor in tensors] for tensors in timestamps]
    return all(place == places[0] for place in places)


def _split(trajectory: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[list[Tensor]]:
    """The inverse of :func:`_stack`, every tensor with memory of its own as in MTT's files."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [
        [part.clone().view(shape) for part, shape in zip(row.split(sizes), shapes, strict=True)]
        for row in trajectory
    ]


def _require_same(path: Path, stored: Any, converted: Any) -> None:
    """Require what a former call left to be what this one would write."""
    if not _equal(stored, converted):
        raise ValueError(f"{path} holds other experts; choose another folder")


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return len(first) == len(second) and all(map(_equal, first, second))


def _leaves(value: Any, place: str, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """What should be the tensors of a file, and where they are in it."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{place} must be a list or a tuple, got {type(value).__name__}")
    level = {3: "trajectory", 2: "epoch", 1: "parameter"}[depth]
    for index, element in enumerate(value):
        inner = f"{place}, {level} {index}"
        if depth == 1:
            yield inner, element
        else:
            yield from _leaves(element, inner, depth - 1)
