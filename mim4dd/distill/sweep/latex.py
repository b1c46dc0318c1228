"""The table of a sweep for a paper: LaTeX, with booktabs."""

import re
from collections.abc import Sequence
from typing import Any

from mim4dd.distill.spread import Spread
from mim4dd.distill.sweep.grid import named, titled
from mim4dd.distill.sweep.table import Row

__all__ = ["latex_table"]

_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{each: f"\\{each}" for each in "&%$#_{}"},
}  # fmt: skip
_NOTHING = "--"


def latex_table(rows: Sequence[Row]) -> str:
    r"""The accuracies in percent, mean ± standard deviation over distillations.

    Where the sweep varies ``ipc``, each number of images per class is a column; otherwise accuracy
    and gain are. The table needs ``\usepackage{booktabs}``.
    """
    varied = [name for name in rows[0].options if len({row.options[name] for row in rows}) > 1]
    by_ipc = "ipc" in varied
    names = [name for name in varied if name != "ipc"]
    body = _by_ipc(rows, names) if by_ipc else _flat(rows, names)
    counts = sorted({row.accuracy.count for row in rows})
    number = "--".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return "\n".join(
        [
            f"% Test accuracy in percent, mean and standard deviation of {number} distillations.",
            r"% Needs \usepackage{booktabs}.",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _by_ipc(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """A line for each setting of the other options, a column for each number of images."""
    sizes = sorted({row.options["ipc"] for row in rows if isinstance(row.options["ipc"], int)})
    lines: dict[tuple[str, ...], dict[Any, Row]] = {}
    for row in rows:
        key = tuple(titled(name, row.options[name]) for name in names)
        lines.setdefault(key, {})[row.options["ipc"]] = row
    left = max(1, len(names))
    real = {ipc: line[ipc] for line in lines.values() for ipc in line}
    found = [
        [
            *(map(_escaped, key) if names else ["distilled"]),
            *(_cell(line[ipc].accuracy) if ipc in line else _NOTHING for ipc in sizes),
        ]
        for key, line in lines.items()
    ]
    random = ["random real images", *[""] * (left - 1)]
    random += [_cell(real[ipc].random_real) for ipc in sizes]
    return [
        rf"\begin{{tabular}}{{{'l' * left}{'c' * len(sizes)}}}",
        r"\toprule",
        _line(["", *[""] * (left - 1), rf"\multicolumn{{{len(sizes)}}}{{c}}{{images per class}}"]),
        rf"\cmidrule(l){{{left + 1}-{left + len(sizes)}}}",
        _line([*([_escaped(named(name)) for name in names] or [""]), *map(str, sizes)]),
        r"\midrule",
        _line(random),
        *map(_line, found),
    ]


def _flat(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    left = max(1, len(names))
    return [
        rf"\begin{{tabular}}{{{'l' * left}cc}}",
        r"\toprule",
        _line(
            [
                *([_escaped(named(name)) for name in names] or [""]),
                r"accuracy [\%]",
                "gain [points]",
            ]
        ),
        r"\midrule",
        *(
            _line(
                [
                    *([_escaped(titled(name, row.options[name])) for name in names] or [""]),
                    _cell(row.accuracy),
                    _NOTHING if row.reference == row.setting else _cell(row.gain, sign="+"),
                ]
            )
            for row in rows
        ),
    ]


def _cell(spread: Spread, sign: str = "") -> str:
    if spread.mean is None:
        return _NOTHING
    text = f"{100 * spread.mean:{sign}.1f}"
    return f"${text}$" if spread.std is None else rf"${text} \pm {100 * spread.std:.1f}$"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}]", lambda found: _SPECIAL[found[0]], text)
