"""Distilled sets that lie in files without their run, and the configurations to judge them by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mim4dd.distill.commands.cross import JudgedRun, load_run
from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.config.file import names_data
from mim4dd.distill.data import DATA_SETS
from mim4dd.distill.methods import METHODS
from mim4dd.distill.runs import SyntheticSet, is_set
from mim4dd.distill.runs.foreign import own_file, set_of
from mim4dd.distill.runs.foreign_files import ForeignSet, open_foreign

__all__ = ["load_judged"]


def load_judged(
    path: Path, iteration: int | None, of_sets: Mapping[str, Any], changes: Mapping[str, int]
) -> list[JudgedRun]:
    """Read what there is to judge at a path: a run's set, a set's file, or another project's files.

    A set that says by which options it was distilled is judged by them: its network, its recipe.
    Any other is by those that :func:`mim4dd.distill.resolve` gives for its data, images per class
    and, where a name tells it, method.

    Args:
        path: The directory of a run, a file, an exported folder, or another project's.
        iteration: Which of a run's checkpoints to judge; None for sets.
        of_sets: What sets without a run may need, by name: data, data_path, zca, device, and the
            step size lr where another project's files hold none.
        changes: Options of evaluation by name.

    Returns:
        One, or for a file of DC's one for each experiment.

    Raises:
        ValueError: If there is nothing, it cannot be read, or what it is of is not known.
    """
    if not is_set(path):
        return [load_run(path, iteration, **changes)]
    if iteration is not None:
        raise ValueError(
            "iteration applies only to run directories with a config.json, "
            f"got {iteration} for {path}"
        )
    own = own_file(path)
    if own is None:
        return _of_others(path, of_sets, changes)
    if "lr" in of_sets:
        raise ValueError(f"lr must be left out for {path}, which holds its own")
    synthetic = SyntheticSet.load(own)
    return [JudgedRun(str(path), synthetic, _own_config(synthetic, path, of_sets, changes))]


def _own_config(
    synthetic: SyntheticSet, path: Path, of_sets: Mapping[str, Any], changes: Mapping[str, int]
) -> DistillConfig:
    known = synthetic.provenance
    asked = {**of_sets, **changes, "data": _data_name(of_sets, known.data, path)}
    if "network" in known.options:
        return DistillConfig.of(**DistillConfig.read({**known.options, **asked}, str(path)))
    if synthetic.zca is not None:
        asked = {"zca": synthetic.zca, **asked}
    return _default_config(synthetic.per_class, synthetic.image_syn.shape, path, asked)


def _of_others(
    path: Path, of_sets: Mapping[str, Any], changes: Mapping[str, int]
) -> list[JudgedRun]:
    sets = open_foreign(path)
    lr = of_sets.get("lr")
    asked = {name: value for name, value in of_sets.items() if name != "lr"} | dict(changes)
    # All of a file are of one shape, or refused beside the data.
    first = sets[0]
    asked["data"] = _data_name(of_sets, first.data, path)
    if first.zca is not None:
        asked = {"zca": first.zca, **asked}
    if first.is_soft:  # which does not say whose they are
        counts = [len(first.images) // first.num_classes] * first.num_classes
    else:
        counts = first.labels.bincount(minlength=first.num_classes).tolist()
    if not first.is_soft:
        counts = first.labels.bincount().tolist()
    config = _default_config(counts, first.images.shape, path, {"method": _method(first), **asked})
    data = config.load_data()
    return [
        JudgedRun(each.name, set_of(each, data, lr=lr), config, lambda _: data) for each in sets
    ]


def _method(found: ForeignSet) -> str:
    """By the recipe of which method a set is judged that says by its files alone what made it."""
    if found.method in METHODS:
        return found.method
    if not found.is_soft:
        return "mtt"
    return "tesla" if found.lr is None else "datm"


def _data_name(of_sets: Mapping[str, Any], known: str, path: Path) -> str:
    """What to load: what was asked for, or else what the set names if that is something here."""
    if "data" in of_sets:
        return str(of_sets["data"])
    if known and names_data(known):
        return known
    said = f"is of {known!r}, which is no data set and no folder here" if known else "says not"
    raise ValueError(f"data (--data) must name the real data that {path} is of, which {said}")


def _default_config(
    counts: list[int], shape: tuple[int, ...], path: Path, asked: Mapping[str, Any]
) -> DistillConfig:
    """What `mim4dd distill` takes for these data and images per class."""
    if min(counts) == 0:
        raise ValueError(f"{path} must hold images of each class, got {counts}")
    per_class = counts[0] if len(set(counts)) == 1 else counts
    options = {"ipc": per_class, **asked}
    data = options["data"]
    if len(shape) == 4 and (data not in DATA_SETS or DATA_SETS[data].sized):
        options["image_size"] = shape[2]
    return DistillConfig.resolve(**options)
