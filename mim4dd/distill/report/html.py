"""A page about one run or several: numbers, pictures, options, and the commands to repeat them."""

import base64
import html
import math
import shlex
import string
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mim4dd import __version__
from mim4dd.distill.config.commands import DistillConfig, ExpertsConfig
from mim4dd.distill.evaluation.recipe import percent
from mim4dd.distill.experts.train import ExpertBuffer
from mim4dd.distill.files.atomic import open_tensors, read_header, readable, write_text
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
    body = [
        "<h2>Summary</h2>",
        _table({each.name: summary(each.run) for each in runs}),
        "<h2>Pictures</h2>",
        *_pictures(runs, shared),
        "<h2>Options</h2>",
        _table(configs, mark=True),
        "<h2>To repeat it</h2>",
        *(_commands(each, configs[each.name], len(runs) > 1) for each in runs),
    ]
    template = string.Template(
        resources.files("mim4dd.distill.report").joinpath("report.html").read_text("utf-8")
    )
    page = template.substitute(
        title=html.escape(", ".join(configs) if len(runs) <= 4 else f"{len(runs)} runs"),
        subtitle=html.escape(
            "; ".join(dict.fromkeys(_about(config) for config in configs.values()))
        ),
        body="\n".join(body),
        version=html.escape(__version__),
    )
    write_text(path, readable(page))


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
            f"{percent({'mean': last['accuracy'], **stats}).lstrip()} % of {stats['seeds']} "
            f"networks after {last['iteration']} iterations"
        )
    bound = final_bound(rows)
    if bound is not None:
        ceiling = math.log(len(run.load_set()[0].class_names))
        entries["MI lower bound"] = f"{bound:.2f} nats, of at most log C = {ceiling:.2f}"
    losses = [row["loss"] for row in rows if "loss" in row]
    if losses:
        entries["loss, first to last"] = f"{losses[0]:.4g} to {losses[-1]:.4g}"
    if run.checkpoint.exists():
        with open_tensors(run.checkpoint) as file:
            header = read_header(file)
        if "seconds" in header:
            entries["time"] = f"{header['seconds']:.1f} s"
        if "peak_bytes" in header:
            entries["peak memory"] = f"{header['peak_bytes'] / 2**20:.0f} MiB"
    return entries


def _about(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {config[key]}" for key in ("method", "data", "ipc") if key in config)


def _table(columns: Mapping[str, Mapping[str, Any]], mark: bool = False) -> str:
    """A row for every key, a column for every run; rows in which runs differ first and marked."""
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    texts = {key: [_text(column.get(key)) for column in columns.values()] for key in keys}
    differing = {key for key in keys if mark and len(set(texts[key])) > 1}
    lines = []
    if len(columns) > 1:
        heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
        lines.append(f"<tr><td></td>{heads}</tr>")
    for key in sorted(keys, key=lambda key: key not in differing):
        cells = "".join(f"<td>{html.escape(text)}</td>" for text in texts[key])
        opening = '<tr class="differs">' if key in differing else "<tr>"
        lines.append(f'{opening}<th scope="row">{html.escape(key)}</th>{cells}</tr>')
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _text(value: Any) -> str:
    return "–" if value is None else str(value)


def _pictures(runs: Sequence[ReportedRun], shared: Sequence[Picture]) -> list[str]:
    """Those of all runs together, then one kind after the other, the runs side by side."""
    titles = dict.fromkeys(picture.title for each in runs for picture in each.drawn.pictures)
    for picture in shared:  # shows all runs, which says more than each run's own
        titles.pop(picture.title, None)
    parts = [f"<h3>{html.escape(picture.title)}</h3>\n{_figure(picture)}" for picture in shared]
    for title in titles:
        figures = [
            _figure(picture, each.name if len(runs) > 1 else "")
            for each in runs
            for picture in each.drawn.pictures
            if picture.title == title
        ]
        several = ' class="side"' if len(runs) > 1 else ""
        parts.append(
            f"<h3>{html.escape(title)}</h3>\n<div{several}>" + "\n".join(figures) + "</div>"
        )
    lines = [line for each in runs for line in each.drawn.left_out]
    return parts + [f'<p class="soft">{html.escape(line)}</p>' for line in lines]


def _figure(picture: Picture, caption: str = "") -> str:
    content = picture.path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])  # of every PNG
    alt = html.escape(f"{picture.title} {caption}".strip())
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    size = f'width="{width / _DPI:.0f}" height="{height / _DPI:.0f}"'
    return (
        f'<figure><div><img alt="{alt}" {size} style="--width: {width / _DPI:.0f}px" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}"></div>{below}</figure>'
    )


def _commands(each: ReportedRun, config: Mapping[str, Any], named: bool) -> str:
    config_file = shlex.quote(str(each.run.config))
    lines = [f"mim4dd distill --config {config_file} --out again"]
    whole = [_command("distill", {**config, "out": "again"})]
    experts = _experts_command(config)
    if experts is not None:
        whole.insert(0, experts)
    heading = f"<h3>{html.escape(each.name)}</h3>\n" if named else ""
    return (
        f"{heading}<pre>{html.escape(lines[0])}</pre>\n"
        f"<details><summary>Without the run's files</summary>\n"
        f"<pre>{html.escape(chr(10).join(whole))}</pre></details>"
    )


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
