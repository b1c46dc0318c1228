"""A distilled set as a folder that other programs read."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mim4dd.distill.files.folders import replacing_folder
from mim4dd.distill.files.tensor_files import save_torch

if TYPE_CHECKING:
    from mim4dd.distill.runs.synthetic_set import SyntheticSet

__all__ = ["SET_FILE", "export_set"]

SET_FILE = "set.safetensors"
_ENTRIES = frozenset({SET_FILE, "set.pt", "images", "ddranking"})
_MODES = {1: "L", 3: "RGB"}  # of PNG files, by channels


def export_set(synthetic: "SyntheticSet", folder: Path) -> None:
    """Write what :meth:`SyntheticSet.export` says."""
    folder = folder.resolve()
    _require_own(folder)
    names = _folder_names(synthetic.class_names)
    with replacing_folder(folder) as new:
        synthetic.save(new / SET_FILE)
        synthetic = synthetic.decoded()
        parts = {
            "images": _plain(synthetic.image_syn),
            "labels": _plain(synthetic.label_syn),
            "syn_lr": _plain(synthetic.syn_lr),
        }
        _save(parts, new / "set.pt")
        if not synthetic.has_images:
            return
        _save_for_ddranking(parts, new / "ddranking")
        if synthetic.pixels.shape[1] in _MODES:
            _save_pictures(synthetic, names, new / "images")


def _require_own(folder: Path) -> None:
    """Require that nothing is lost where the folder is replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"folder must be a folder, {folder} is a file")
    held = {entry.name for entry in folder.iterdir()}
    if held and (SET_FILE not in held or held - _ENTRIES):
        others = ", ".join(sorted(held - _ENTRIES)[:3])
        raise ValueError(
            f"folder must be new or an earlier export, {folder} holds {others or 'no ' + SET_FILE}"
        )


def _folder_names(class_names: tuple[str, ...]) -> list[str]:
    """Names of the classes as names of folders; what a folder's cannot have is as in a URL."""
    for name in class_names:
        if class_names.count(name) > 1:
            raise ValueError(f"class_names must differ to name folders, got {name!r} twice")
    return [_folder_name(name) for name in class_names]


def _folder_name(name: str) -> str:
    for letter in "%/\0":
        name = name.replace(letter, f"%{ord(letter):02X}")
    return f"%2E{name[1:]}" if name[:1] == "." else name or "%"


def _plain(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, in memory of its own: torch.save writes all that it is a view of."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _save_for_ddranking(parts: dict[str, Tensor], folder: Path) -> None:
    """The files that DD-Ranking's examples load: it takes the softmax of soft labels."""
    folder.mkdir()
    labels = parts["labels"]
    if labels.is_floating_point():
        labels = labels.clamp_min(torch.finfo(labels.dtype).tiny).log()
    for name, tensor in (("images", parts["images"]), ("labels", labels), ("lr", parts["syn_lr"])):
        _save(tensor, folder / f"{name}.pt")


def _save(value: object, path: Path) -> None:
    with path.open("wb") as file:
        save_torch(value, file)


def _save_pictures(synthetic: "SyntheticSet", names: list[str], folder: Path) -> None:
    from PIL import Image

    pixels = synthetic.pixels.detach().cpu().clamp(0, 1).mul(255).round().byte()
    mode, digits = _MODES[pixels.shape[1]], len(str(len(pixels) - 1))
    for index, (label, image) in enumerate(
        zip(synthetic.class_syn.tolist(), pixels.movedim(1, -1), strict=True)
    ):
        array = image.squeeze(-1).numpy() if mode == "L" else image.contiguous().numpy()
        path = folder / names[label] / f"{index:0{digits}d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
