"""The directory of one distillation run: configuration, metrics, checkpoint, result."""

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mim4dd.distill.storage import (
    load_tensors,
    read_json,
    save_tensors,
    write_atomically,
    write_json,
)

__all__ = ["RunDirectory", "SyntheticSet"]

_FORMAT = "mim4dd.synthetic.2"


class SyntheticSet:
    """A distilled set: images as networks are trained on them, labels, and the step size to use."""

    def __init__(
        self,
        image_syn: Tensor,  # (n, channels, H, W), normalised
        label_syn: Tensor,  # (n,) classes, or (n, C) probabilities
        class_syn: Tensor,  # (n,), the class that each image was made for
        syn_lr: Tensor,  # ()
        pixels: Tensor,  # (n, channels, H, W), for pictures
        class_names: Iterable[str],
    ) -> None:
        self.image_syn = image_syn
        self.label_syn = label_syn
        self.class_syn = class_syn
        self.syn_lr = syn_lr
        self.pixels = pixels
        self.class_names = tuple(class_names)

    def to(self, device: str) -> "SyntheticSet":
        """The same set on another device."""
        return SyntheticSet(
            self.image_syn.to(device),
            self.label_syn.to(device),
            self.class_syn.to(device),
            self.syn_lr.to(device),
            self.pixels.to(device),
            self.class_names,
        )

    def save(self, path: Path) -> None:
        """Write the set to a safetensors file, atomically."""
        tensors = {
            "image_syn": self.image_syn,
            "label_syn": self.label_syn,
            "class_syn": self.class_syn,
            "syn_lr": self.syn_lr,
            "pixels": self.pixels,
        }
        save_tensors(path, tensors, {"format": _FORMAT, "class_names": list(self.class_names)})

    @staticmethod
    def load(path: Path) -> "SyntheticSet":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If the file is not there, truncated or something else.
        """
        tensors, header = load_tensors(path)
        if header.get("format") != _FORMAT:
            raise ValueError(f"{path} does not hold a synthetic set of mim4dd")
        return SyntheticSet(**tensors, class_names=header["class_names"])


class RunDirectory:
    """Paths of a run and the reading and writing of what they hold.

    Args:
        path: The directory.
        read_only: Write nothing, as the ranks beside the first.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.initial = self.path / "initial.safetensors"
        self.synthetic = self.path / "synthetic.safetensors"
        self.pictures = self.path / "pictures"

    def create(self, config: Mapping[str, Any]) -> None:
        """Start a new run with its resolved configuration.

        Raises:
            ValueError: If the directory already holds a run.
        """
        if self.read_only:  # by now the first rank may have created it
            return
        self.require_new()
        write_json(self.config, config)

    def require_new(self) -> None:
        """Raise ValueError if the directory already holds a run."""
        if self.config.exists():
            raise ValueError(
                f"{self.path} already holds a run: continue it with "
                f"--resume {shlex.quote(str(self.path))}, "
                "or choose another --out"
            )

    def read_config(self) -> dict[str, Any]:
        """The resolved configuration that the run was started with."""
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

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to the metrics."""
        if self.read_only:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All rows; a last line cut off by a crash is left out."""
        if not self.metrics.exists():
            return []
        rows = []
        for line in self.metrics.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def rewind_metrics(self, iteration: int) -> None:
        """Drop the rows from ``iteration`` on, which a resumed run writes again."""
        if self.read_only:
            return
        rows = [row for row in self.read_metrics() if row["iteration"] < iteration]
        content = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(self.metrics, content.encode())

    def save_checkpoint(self, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        """Replace the checkpoint."""
        if not self.read_only:
            save_tensors(self.checkpoint, tensors, header)

    def save_set(self, path: Path, synthetic: SyntheticSet) -> None:
        """Write a synthetic set to one of the run's files."""
        if not self.read_only:
            synthetic.save(path)

    def load_checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The last checkpoint's tensors and header."""
        return load_tensors(self.checkpoint)
