"""All pictures of a run, drawn from what its directory holds."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.config.file import load_data_of
from mim4dd.distill.data import ImageData
from mim4dd.distill.files.atomic import readable
from mim4dd.distill.methods import METHODS
from mim4dd.distill.pictures import (
    class_similarity,
    draw_curves,
    draw_embedding,
    draw_grid,
    draw_rows,
    draw_similarity,
    draw_soft_labels,
    save_evolution,
    save_figure,
)
from mim4dd.distill.report.trained_features import (
    TrainedNetwork,
    expert_network,
    feature_rows,
    train_on_real,
    typical_samples,
)
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.runs.foreign import own_file

__all__ = [
    "Drawn",
    "Picture",
    "draw_evolution",
    "draw_features",
    "draw_run",
    "draw_run_features",
    "draw_set",
    "run_names",
]


@dataclass(frozen=True)
class Picture:
    """A picture in a file, and what it shows."""

    path: Path
    title: str


@dataclass
class Drawn:
    """Pictures of a run, the files that were written, and a line for each that could not be."""

    paper: bool = False
    pictures: list[Picture] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, path: Path, title: str, figure: Any) -> None:
        """Write a figure and keep where."""
        self.written += save_figure(path, figure, paper=self.paper)
        self.pictures.append(Picture(path, title))

    def leave_out(self, path: Path, why: object) -> None:
        """Say why a picture is not there."""
        self.left_out.append(f"{path} left out: {why}")

    def extend(self, other: "Drawn") -> None:
        """Take over the pictures of another part of the run."""
        self.pictures += other.pictures
        self.written += other.written
        self.left_out += other.left_out

    @property
    def lines(self) -> list[str]:
        """What a command prints: a path or a reason a line."""
        return [*map(str, self.written), *self.left_out]


def draw_run(
    run: RunDirectory, data_name: str, iteration: int | None = None, *, paper: bool = False
) -> Drawn:
    """Draw what the files of a run hold: its samples before and after, soft labels and curves.

    Args:
        run: A run, finished or not.
        data_name: What to call the data.
        iteration: Which of its checkpoints to draw; by default the last state that it has.
        paper: Draw at the size of a paper, as PDF and SVG beside PNG.

    Raises:
        ValueError: If the run has no such checkpoint or no metrics.
    """
    (final, reached), rows = run.load_set(iteration), run.read_metrics()
    if not rows:
        raise ValueError(f"{run.metrics} must hold the run's metrics, got no row")
    labels, names = final.class_syn, final.class_names
    name, after = _name(final, data_name), f"after {_count(reached, 'iteration')}"
    draw = draw_grid if final.has_images else draw_rows
    drawn = Drawn(paper)
    _draw_samples(drawn, final, run.pictures / "synthetic.png", f"{name}, {after}")
    before_after = run.pictures / "before_after.png"
    try:
        initial = SyntheticSet.load(run.initial)
    except ValueError as error:
        drawn.leave_out(before_after, error)
    else:
        panels = {"initial": _shown(initial), after: _shown(final)}
        drawn.add(before_after, "Before and after", draw(panels, labels, names, name, paper=paper))
    _draw_labels(drawn, final, run.pictures / "soft_labels.png", name, f" {after}")
    figure = draw_curves({readable(run.path.resolve().name): rows}, len(names), paper=paper)
    drawn.add(run.pictures / "curves.png", "Curves", figure)
    return drawn


def draw_evolution(run: RunDirectory, data_name: str) -> Drawn:
    """Write an animation of a run's images over the iterations of which it kept the set."""
    path, drawn = run.pictures / "evolution.gif", Drawn()
    final, reached = run.load_set()
    if not final.has_images:
        drawn.leave_out(path, "the samples are no images")
        return drawn
    kept = {iteration: run.load_set(iteration)[0] for iteration in
            {*run.kept_sets(), *run.iterations()} - {0}}  # fmt: skip
    sets = {**kept, reached: final}
    if run.initial.exists():
        sets[0] = SyntheticSet.load(run.initial)
    if len(sets) < 2:
        drawn.leave_out(path, "the run has its set of one iteration alone")
        return drawn
    pixels = {iteration: each.pixels for iteration, each in sets.items()}
    title = _name(final, data_name)
    save_evolution(path, pixels, final.class_syn, final.class_names, title)
    drawn.written.append(path)
    return drawn


def draw_set(path: Path, *, paper: bool = False) -> Drawn:
    """Draw what a file of :meth:`SyntheticSet.save` holds, or an export, beside it.

    ``paper`` draws at the size of a paper, as PDF and SVG beside PNG.

    Raises:
        ValueError: If there is no such file, or it is another project's.
    """
    file = own_file(path)
    if file is None:
        raise ValueError(
            f"{path} must be a run, or a set of mim4dd in a file: those of other projects do not "
            "say what their images are; distill.read_set reads them beside their data"
        )
    synthetic = SyntheticSet.load(file)
    stem = path.with_name(path.name if path.is_dir() else path.stem)
    name = _name(synthetic, synthetic.provenance.data or stem.name)
    drawn = Drawn(paper)
    _draw_samples(drawn, synthetic, stem.with_name(f"{stem.name}.png"), name)
    _draw_labels(drawn, synthetic, stem.with_name(f"{stem.name}_soft_labels.png"), name)
    return drawn


def _name(synthetic: SyntheticSet, data_name: str) -> str:
    """Whose samples a picture shows, and how many of each class."""
    kind = "image" if synthetic.has_images else "row"
    fewest, most = min(synthetic.per_class), max(synthetic.per_class)
    count = _count(most, kind) if fewest == most else f"{fewest} to {_count(most, kind)}"
    return f"{readable(data_name)}, {count} per class"


def _draw_samples(drawn: Drawn, synthetic: SyntheticSet, path: Path, title: str) -> None:
    draw = draw_grid if synthetic.has_images else draw_rows
    kind, panels = "images" if synthetic.has_images else "rows", {"": _shown(synthetic)}
    labels, names = synthetic.class_syn, synthetic.class_names
    figure = draw(panels, labels, names, title, paper=drawn.paper)
    drawn.add(path, f"Synthetic {kind}", figure)


def _draw_labels(
    drawn: Drawn, synthetic: SyntheticSet, path: Path, name: str, after: str = ""
) -> None:
    """Soft labels, where there are such."""
    soft = synthetic.label_syn
    if soft.dim() == 2:
        title, labels, names = (
            f"{name}: soft labels{after}",
            synthetic.class_syn,
            synthetic.class_names,
        )
        drawn.add(
            path, "Soft labels", draw_soft_labels(soft, labels, names, title, paper=drawn.paper)
        )


def draw_run_features(
    run: RunDirectory,
    device: str,
    layers: Sequence[str] | None,
    train: bool,
    iteration: int | None = None,
    *,
    paper: bool = False,
) -> Drawn:
    """Draw what a network trained on real data makes of a run's samples.

    Args:
        run: A run, finished or not.
        device: Where to compute, whatever the run's own device was.
        layers: Names of submodules to look at; by default the network's ``feature_layers``.
        train: Train a network where the run's experts are not there, instead of leaving the
            pictures out.
        iteration: Which of its checkpoints to draw; by default the last state that it has.
        paper: Draw at the size of a paper, as PDF and SVG beside PNG.

    Raises:
        ValueError: If ``layers`` names no submodules; with ``train`` also if the data is not there.
    """
    if not run.config.exists() and not train:
        return _without_features(run, f"{run.config} does not exist")
    values = DistillConfig.read(run.read_config(), str(run.config))
    config = DistillConfig.of(**(values | {"device": device}))
    try:
        data = load_data_of(config, run.path)
    except ValueError as error:
        if train:
            raise
        return _without_features(run, error)
    try:
        trained = expert_network(config, data)
    except ValueError as error:
        if train:
            trained = train_on_real(config, data)
        elif METHODS[config.method_name].needs_experts:
            return _without_features(run, error)
        else:
            return _without_features(run, "the run has no experts; --features trains a network")
    return draw_features(run, data, trained, layers, iteration, paper=paper)


def _without_features(run: RunDirectory, why: object) -> Drawn:
    drawn = Drawn()
    drawn.leave_out(run.pictures / "embedding.png and similarity.png", why)
    return drawn


def draw_features(
    run: RunDirectory,
    data: ImageData,
    trained: TrainedNetwork,
    layers: Sequence[str] | None,
    iteration: int | None = None,
    *,
    paper: bool = False,
) -> Drawn:
    """Draw real and synthetic samples in the plane, and how alike their classes are."""
    synthetic = run.load_set(iteration)[0].to(str(data.image_test.device)).decoded()
    synthetic.require_data(data)
    names, classes = synthetic.class_names, synthetic.class_syn
    network = trained.network
    every = list(layers) if layers is not None else list(getattr(network, "feature_layers", ()))
    images, labels = typical_samples(data)
    syn = feature_rows(network, synthetic.image_syn, every)
    real = feature_rows(network, images, every)
    classes, labels = classes.cpu(), labels.cpu()
    similarities = {
        layer: class_similarity(syn[layer], classes, real[layer], labels, len(names))
        for layer in every
    }
    # One map says most where it is of the last layer; asked for by name, every layer has one.
    mapped = {layer: (syn[layer], real[layer]) for layer in (every if layers else every[-1:])}
    about = f"{data.name}, features of {trained.origin}"
    drawn = Drawn(paper)
    drawn.add(
        run.pictures / "embedding.png",
        "Real and synthetic samples in feature space",
        draw_embedding(
            mapped, classes, labels, names, f"{about}, {', '.join(mapped)}", paper=paper
        ),
    )
    drawn.add(
        run.pictures / "similarity.png",
        "Similarity between classes",
        draw_similarity(similarities, names, about, paper=paper),
    )
    return drawn


def run_names(paths: Sequence[Path]) -> dict[Path, str]:
    """What tells runs apart: their paths below the deepest folder that holds all of them."""
    resolved = {path: path.resolve() for path in paths}
    above = os.path.commonpath([whole.parent for whole in resolved.values()])
    return {path: readable(str(whole.relative_to(above))) for path, whole in resolved.items()}


def _shown(synthetic: SyntheticSet) -> Tensor:
    """Images in pixels; rows normalised, so that one scale of colours serves all features."""
    return synthetic.pixels if synthetic.has_images else synthetic.image_syn


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
