"""A page about one run or several: numbers, pictures, options, and the commands to repeat them."""

import base64
import math
import shlex
import statistics
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from mim4dd import __version__
from mim4dd.distill.config.commands import DistillConfig, ExpertsConfig
from mim4dd.distill.evaluation.recipe import percent
from mim4dd.distill.experts.train import ExpertBuffer
from mim4dd.distill.files.atomic import readable, write_text
from mim4dd.distill.methods import METHODS
from mim4dd.distill.report.show import Drawn, Picture
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.runs.metrics import final_bound

__all__ = ["ReportedRun", "summary", "write_report"]

_DPI = 144 / 96  # pixels of a picture per pixel of a page


@dataclass(frozen=True)
class ReportedRun:
    """A run, what a page calls it, and its pictures."""

    name: str
    run: RunDirectory
    drawn: Drawn


class _Row(NamedTuple):
    """Of a table with a column for every run."""

    key: str
    texts: list[str]
    differs: bool


class _Figure(NamedTuple):
    """A picture as a page holds it, of ``width`` by ``height`` of its pixels."""

    alt: str
    caption: str
    width: int
    height: int
    data: str


class _Commands(NamedTuple):
    """How to repeat a run: by its files, and without them."""

    name: str
    by_its_files: str
    without_them: str


def write_report(path: Path, runs: Sequence[ReportedRun], shared: Sequence[Picture] = ()) -> None:
    """Write one HTML file that needs no other: pictures are in it, and nothing is fetched.

    Args:
        path: Where to.
        runs: What to report; several stand side by side.
        shared: Pictures of all of them together.

    Raises:
        ValueError: If there are no runs, or a file of one cannot be read.
    """
    if not runs:
        raise ValueError("runs must hold at least one run, got none")
    configs = {each.name: _options(each.run) for each in runs}
    page = _template().render(
        title=", ".join(configs) if len(runs) <= 4 else f"{len(runs)} runs",
        subtitle="; ".join(dict.fromkeys(_about(config) for config in configs.values())),
        names=list(configs),
        summary=_rows({each.name: summary(each.run) for each in runs}),
        pictures=list(_pictures(runs, shared)),
        left_out=[line for each in runs for line in each.drawn.left_out],
        options=_rows(configs, mark=True),
        commands=[_commands(each, configs[each.name]) for each in runs],
        version=__version__,
    )
    write_text(path, readable(page))


def _template() -> jinja2.Template:
    text = resources.files("mim4dd.distill.report").joinpath("report.html").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def _options(run: RunDirectory) -> dict[str, Any]:
    """The options that counted, of which older runs noted more; as they are where a program's."""
    values = run.read_config()
    try:
        return DistillConfig.read(values, str(run.config))
    except ValueError:
        return values


def summary(run: RunDirectory) -> dict[str, str]:
    """What came out of a run and what it cost, for people, by what each figure is of."""
    rows, entries = run.read_metrics(), {}
    if rows:
        entries["iterations"] = str(rows[-1]["iteration"])
    judged = [row for row in rows if "accuracy_seeds" in row]
    if judged:
        last = judged[-1]
        stats = {name: last[f"accuracy_{name}"] for name in ("std", "seeds")}
        entries["test accuracy"] = (
            f"{percent({'mean': last['accuracy'], **stats})} % of {stats['seeds']} "
            f"networks after {last['iteration']} iterations"
        )
    bound = final_bound(rows)
    if bound is not None:
        ceiling = math.log(len(run.load_set()[0].class_names))
        entries["MI lower bound"] = f"{bound:.2f} nats (at most log C = {ceiling:.2f})"
    losses = [row["loss"] for row in rows if "loss" in row]
    if losses:
        entries["loss, first to last"] = f"{losses[0]:.4g} to {losses[-1]:.4g}"
    if seconds := [row["seconds"] for row in rows if "seconds" in row]:
        entries["time per iteration"] = f"{statistics.median(seconds):.3g} s, the median"
    if run.checkpoint.exists():
        header = run.read_checkpoint_header()
        if header.get("seconds") is not None:
            entries["time"] = f"{header['seconds']:.1f} s"
        if header.get("peak_bytes") is not None:
            entries["peak memory"] = f"{header['peak_bytes'] / 2**20:.0f} MiB"
    return entries


def _about(config: Mapping[str, Any]) -> str:
    shown = dict(config)
    if (name := config.get("method", "")) in METHODS:
        shown["method"] = METHODS[name].title
    return ", ".join(f"{key} {shown[key]}" for key in ("method", "data", "ipc") if key in shown)


def _rows(columns: Mapping[str, Mapping[str, Any]], mark: bool = False) -> list[_Row]:
    """A row for every key, a column for every run; rows in which runs differ first and marked."""
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    texts = {key: [_text(column.get(key)) for column in columns.values()] for key in keys}
    rows = [_Row(key, texts[key], mark and len(set(texts[key])) > 1) for key in keys]
    return sorted(rows, key=lambda row: not row.differs)


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _pictures(
    runs: Sequence[ReportedRun], shared: Sequence[Picture]
) -> Iterator[tuple[str, list[_Figure]]]:
    """Titles and figures: of all runs together, then of a kind, the runs side by side."""
    for picture in shared:
        yield picture.title, [_figure(picture)]
    titles = dict.fromkeys(picture.title for each in runs for picture in each.drawn.pictures)
    shown = {picture.title for picture in shared}  # all runs, which says more than each run's own
    for title in (title for title in titles if title not in shown):
        yield (
            title,
            [
                _figure(picture, each.name if len(runs) > 1 else "")
                for each in runs
                for picture in each.drawn.pictures
                if picture.title == title
            ],
        )


def _figure(picture: Picture, caption: str = "") -> _Figure:
    content = picture.path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])  # of every PNG
    alt = f"{picture.title} {caption}".strip()
    data = base64.b64encode(content).decode()
    return _Figure(alt, caption, round(width / _DPI), round(height / _DPI), data)


def _commands(each: ReportedRun, config: Mapping[str, Any]) -> _Commands:
    by_its_files = f"mim4dd distill --config {shlex.quote(str(each.run.config))} --out again"
    lines = [_experts_command(config), _command("distill", {**config, "out": "again"})]
    return _Commands(each.name, by_its_files, "\n".join(filter(None, lines)))


def _experts_command(config: Mapping[str, Any]) -> str | None:
    """How the run's experts were trained, where they are still there and were trained here."""
    try:
        experts = ExpertBuffer(config["experts"])
    except (KeyError, ValueError):
        return None
    training = experts.headers[0]["training"]
    if training is None:
        return None
    names = ExpertsConfig.every_option()
    values = {name: value for name, value in config.items() if name in names}
    trained = {"num_experts": len(experts), "out": config["experts"]}
    return _command("experts", values | training | trained)


def _command(command: str, options: Mapping[str, Any]) -> str:
    words = ["mim4dd", command]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)
