"""The directory of one distillation run: configuration, metrics, checkpoints, result."""

import json
import re
import shlex
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mim4dd.distill.files.atomic import (
    append,
    link,
    load_tensors,
    open_tensors,
    parse_json,
    read_header,
    read_json,
    save_tensors,
    write_atomically,
    write_json,
)
from mim4dd.distill.files.fields import require_each, require_fields
from mim4dd.distill.files.hold import hold, require_there
from mim4dd.distill.files.regular import naming, read_bytes, require_within
from mim4dd.distill.runs.synthetic_set import SyntheticSet
from mim4dd.distill.runtime.ranks import any_rank

__all__ = ["RunDirectory", "SyntheticSet"]

# Beside the newest checkpoint so many older ones stay, spread over the run.
_MOST_KEPT = 6


class RunDirectory:
    """Paths of a run and the reading and writing of what they hold.

    Args:
        path: The directory.
        read_only: Write nothing, as the ranks beside the first.

    Example:
        >>> from mim4dd.distill.runs import RunDirectory
        >>> RunDirectory("runs/mtt").metrics.as_posix()
        'runs/mtt/metrics.jsonl'
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.older_checkpoints = self.path / "checkpoints"
        self.sets = self.path / "sets"
        self.initial = self.path / "initial.safetensors"
        self.synthetic = self.path / "synthetic.safetensors"
        self._holder: int | None = None  # the thread that holds it, and may do so once more

    @contextmanager
    def held(self, device: torch.device | None = None) -> Iterator[None]:
        """Be the only one who writes in the directory, until the end of the block.

        Whoever holds it may do so again within. Of several ranks the first one holds it.

        Args:
            device: Of the ranks, where all of them come here: then all are refused together.

        Raises:
            BlockingIOError: If another process, or another thread, is at work there.
            OSError: If it cannot be made, or its lock cannot be used.
        """
        if self._holder == threading.get_ident():
            yield
            return
        with ExitStack() as leaving:
            refusal = None
            try:
                if not self.read_only:
                    leaving.enter_context(hold(self.path))
            except OSError as error:
                refusal = error
            if any_rank(refusal is not None, device) if device else refusal is not None:
                raise refusal or BlockingIOError(f"another rank does not work in {self.path}")
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = None

    @property
    def pictures(self) -> Path:
        """Where pictures of the run go.

        Raises:
            ValueError: If a link leads out of the run.
        """
        return self._within("pictures")

    @property
    def preparation(self) -> Path:
        """Where a method keeps what it does before the first step.

        Raises:
            ValueError: If a link leads out of the run.
        """
        return self._within("preparation")

    def drop_preparation(self) -> None:
        """Remove what a method kept, once a checkpoint holds it."""
        if not self.read_only and self.preparation.exists():
            with self._writing(self.preparation):
                shutil.rmtree(self.preparation)

    def _within(self, name: str) -> Path:
        folder = self.path / name
        require_within(folder, self.path)
        return folder

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """Write one of the run's files, and say where it stands if that cannot be done."""
        require_there(path)
        require_within(path.parent, self.path)
        try:
            yield
        except OSError as error:
            said = str(error) if error.strerror is None else error.strerror
            if error.filename is not None:
                said = f"{error.filename} could not be written ({said})"
            if self.checkpoint.exists():
                said += (
                    ". Once that is mended, the run goes on from its last checkpoint by --resume "
                    f"{shlex.quote(str(self.path))}, in Python with resume=True"
                )
            raise OSError(error.errno, said) from error

    def create(self, config: Mapping[str, Any]) -> None:
        """Start a new run with its resolved configuration.

        Raises:
            ValueError: If the directory already holds a run.
        """
        if self.read_only:  # by now the first rank may have created it
            return
        self.require_new()
        with self._writing(self.config):
            write_json(self.config, config)

    def change_config(self, config: Mapping[str, Any]) -> None:
        """Hold this configuration from here on, as a run that goes on with other options."""
        if self.read_only or (self.config.exists() and config == self.read_config()):
            return
        with self._writing(self.config):
            write_json(self.config, config)

    def require_new(self) -> None:
        """Raise ValueError if the directory already holds a run."""
        if self.config.exists() or self.started:
            raise ValueError(
                f"{self.path} already holds a run: continue it with "
                f"--resume {shlex.quote(str(self.path))}, in Python with resume=True, "
                "or choose another --out"
            )

    @property
    def started(self) -> bool:
        """Whether there is anything that a distillation left, finished or not."""
        left = (self.initial, self.metrics, self.checkpoint, self.synthetic)
        return any(path.exists() for path in left)

    def drop_result(self) -> None:
        """Be unfinished, as a run is that goes on."""
        if not self.read_only:
            with self._writing(self.synthetic):
                self.synthetic.unlink(missing_ok=True)

    def rewind(self, iteration: int) -> None:
        """Drop what a run that goes on from ``iteration`` will write again."""
        if self.read_only:
            return
        for kept, file in ((self.kept_iterations(), self._kept), (self.kept_sets(), self.kept_set)):
            for later in kept:
                if later > iteration:
                    with self._writing(file(later)):
                        file(later).unlink()
        self.rewind_metrics(iteration)

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration that the run was started with, or last continued."""
        return read_json(self.config)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.synthetic.exists()

    def load_result(self) -> SyntheticSet:
        """The set after the last iteration.

        Raises:
            ValueError: If there is none yet, or the file is truncated or something else.
        """
        if self.config.exists() and not self.finished:
            raise ValueError(
                f"{self.path} holds a run that is not finished: continue it with "
                f"`mim4dd distill --resume {shlex.quote(str(self.path))}`"
            )
        return SyntheticSet.load(self.synthetic)

    def load_set(self, iteration: int | None = None) -> tuple[SyntheticSet, int]:
        """The set before an iteration, and which one that is.

        Args:
            iteration: One of :meth:`iterations` or :meth:`kept_sets`; by default the last, which of
                a finished run is its result.

        Raises:
            ValueError: If there is none, or a file is truncated or something else.
        """
        if iteration is None and (self.finished or not self.checkpoint.exists()):
            if self.config.exists() and not self.finished:
                raise ValueError(
                    f"{self.path} holds a run that has no checkpoint yet: continue it with "
                    f"`mim4dd distill --resume {shlex.quote(str(self.path))}`"
                )
            result = SyntheticSet.load(self.synthetic)
            rows = self.read_metrics()
            return result, rows[-1]["iteration"] if rows else 0
        last = self.load_checkpoint()[1]["iteration"]
        if self.finished and iteration == last:
            return SyntheticSet.load(self.synthetic), last
        if iteration is not None and (kept := self.kept_sets()):
            if iteration in kept:
                return SyntheticSet.load(self.kept_set(iteration)), iteration
            there = sorted({*self.iterations(), *kept})
            if iteration not in there:
                raise ValueError(
                    f"iteration must be one that {self.path} has a checkpoint or a set of, "
                    f"{', '.join(map(str, there))}, got {iteration}"
                )
        tensors, header = self.load_checkpoint(iteration)
        options = self.read_config() if self.config.exists() else None
        with naming(self.path):
            return SyntheticSet.of_checkpoint(tensors, header, options), header["iteration"]

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to the metrics."""
        if self.read_only:
            return
        with self._writing(self.metrics):
            append(self.metrics, (json.dumps(row) + "\n").encode())

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows; a last line cut off by a crash is left out.

        Raises:
            ValueError: If another line holds no numbers by name, its iteration among them.
        """
        if not self.metrics.exists():
            return []
        *lines, last = read_bytes(self.metrics).split(b"\n")
        rows = [
            _row(line, f"{self.metrics}, line {number}") for number, line in enumerate(lines, 1)
        ]
        if last:
            with suppress(ValueError):
                rows.append(_row(last, str(self.metrics)))
        return rows

    def rows_written(self) -> int:
        """How many rows the metrics have, counted without reading them."""
        return self.metrics.read_bytes().count(b"\n") if self.metrics.exists() else 0

    def rewind_metrics(self, iteration: int) -> None:
        """Drop the rows from ``iteration`` on, which a resumed run writes again."""
        if self.read_only:
            return
        rows = [row for row in self.read_metrics() if row["iteration"] < iteration]
        content = "".join(json.dumps(row) + "\n" for row in rows)
        with self._writing(self.metrics):
            write_atomically(self.metrics, content.encode())

    def save_checkpoint(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        if not self.read_only:
            with self._writing(self.checkpoint):
                save_tensors(self.checkpoint, tensors, header)

    def keep_checkpoint(self, iteration: int) -> None:
        """Keep the checkpoint, which is of ``iteration``, among a few older ones to go back to.

        Where that makes too many, the one goes whose neighbours are closest to each other, so that
        the rest stay spread over the run.
        """
        if self.read_only:
            return
        with self._writing(self._kept(iteration)):
            link(self.checkpoint, self._kept(iteration))
            kept = self.kept_iterations()
            if len(kept) > _MOST_KEPT:
                inner = zip(kept, kept[1:], kept[2:], strict=False)
                _, crowded = min((after - before, middle) for before, middle, after in inner)
                self._kept(crowded).unlink()

    def kept_iterations(self) -> list[int]:
        """The iterations of the older checkpoints that are kept, in order."""
        return _iterations_in(self.older_checkpoints)

    def iterations(self) -> list[int]:
        """The iterations before which the run has a checkpoint, in order."""
        last = [self.load_checkpoint()[1]["iteration"]] if self.checkpoint.exists() else []
        return sorted({*self.kept_iterations(), *last})

    def keep_set(self, iteration: int, synthetic: SyntheticSet) -> None:
        """Keep a copy of the set as it is before an iteration."""
        self.save_set(self.kept_set(iteration), synthetic)

    def kept_set(self, iteration: int) -> Path:
        """The file of the copy that was kept before an iteration."""
        return self.sets / f"{iteration:08d}.safetensors"

    def kept_sets(self) -> list[int]:
        """The iterations before which a copy of the set was kept, in order."""
        return _iterations_in(self.sets)

    def save_set(self, path: Path, synthetic: SyntheticSet) -> None:
        """Write a synthetic set to one of the run's files."""
        if not self.read_only:
            with self._writing(path):
                synthetic.save(path)

    def save_json(self, path: Path, values: Mapping[str, Any]) -> None:
        """Write JSON of whoever works on the run to a file beside the run's own."""
        if not self.read_only:
            with self._writing(path):
                write_json(path, values)

    def load_checkpoint(
        self, iteration: int | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A checkpoint's tensors and header; by default the last one's.

        Raises:
            ValueError: If there is none of that iteration, or the file is truncated.
        """
        last = _load_checkpoint(self.checkpoint)
        if iteration is None or last[1]["iteration"] == iteration:
            return last
        if iteration not in self.kept_iterations():
            raise ValueError(
                f"iteration must be one that {self.path} has a checkpoint of, "
                f"{', '.join(map(str, self.iterations()))}, got {iteration}"
            )
        return _load_checkpoint(self._kept(iteration))

    def read_checkpoint_header(self) -> dict[str, Any]:
        """The header of the last checkpoint, without its tensors.

        Raises:
            ValueError: If there is none, or the file is truncated.
        """
        with open_tensors(self.checkpoint) as file:
            header = read_header(file, self.checkpoint)
        _require_header(header, self.checkpoint)
        return header

    def _kept(self, iteration: int) -> Path:
        return self.older_checkpoints / f"{iteration:08d}.safetensors"


def _iterations_in(folder: Path) -> list[int]:
    """By what the files of a folder are named, in order; other files count nowhere."""
    stems = [path.stem for path in folder.glob("[0-9]*.safetensors")]
    return sorted(int(stem) for stem in stems if re.fullmatch("[0-9]{8,18}", stem))


def _load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, header = load_tensors(path)
    _require_header(header, path)
    return tensors, header


def _require_header(header: Mapping[str, Any], path: Path) -> None:
    hints: dict[str, Any] = {"identity": dict | None, "changes": list | None, "ranks": int | None}
    hints |= dict.fromkeys(("seconds", "cpu_seconds", "peak_bytes"), float | None)
    require_fields(header, f"the header of {path}", iteration=int, **hints)


def _row(line: bytes, source: str) -> dict[str, Any]:
    row = parse_json(line, source)
    require_fields(row, source, iteration=int)
    # The deviation of one network is none.
    require_each({name: row[name] for name in row if name != "accuracy_std"}, source, float)
    require_fields(row, source, accuracy_std=float | None)
    return row
