"""Accuracies of sets beside each other, as tables and as CSV files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mim4dd.distill.evaluation.dd_ranking import TITLE, Scores
from mim4dd.distill.evaluation.fairness import Gain
from mim4dd.distill.evaluation.recipe import Accuracy, percent
from mim4dd.distill.files.atomic import write_csv

__all__ = ["cross_table", "gain_table", "own_table", "save_accuracies", "save_gains", "score_table"]


def cross_table(table: Mapping[str, Mapping[str, Accuracy]]) -> str:
    """Sets by networks, mean and in brackets deviation over networks, in percent."""
    first = next(iter(table.values()))
    num_eval = len(next(iter(first.values())).values)
    columns = [each for name, accuracy in first.items() for each in _columns(name, accuracy)]
    rows = [[f"%, of {num_eval} networks each", *columns]]
    rows += [
        [name, *(text for accuracy in row.values() for text in _percents(accuracy))]
        for name, row in table.items()
    ]
    return _aligned(rows, num_names=1)


def own_table(table: Mapping[str, Mapping[str, Accuracy]]) -> str:
    """Sets by the last and the best test of one network each, which may be another for each set."""
    return cross_table(
        {name: {"last epoch": accuracy} for name, row in table.items() for accuracy in row.values()}
    )


def gain_table(gains: Mapping[tuple[str, str], Sequence[Gain]]) -> str:
    """A line for every set, network and recipe, mean and deviation over networks in percent."""
    first = next(iter(gains.values()))[0]
    num_eval = len(first.gain.values)
    rows = [
        [
            *("set", "network", "labels", "augmentation"),
            *_columns(f"% of {num_eval} networks", first.synthetic),
            *_columns("random real", first.random_real),
            "gain",
        ]
    ]
    for names, by_recipe in gains.items():
        for each in by_recipe:
            accuracies = [*_percents(each.synthetic), *_percents(each.random_real)]
            gain = percent(each.gain.summary(), "+")
            rows.append([*names, *each.recipe, *accuracies, gain])
    text = _aligned(rows, num_names=4)
    kinds = {each.recipe.labels for by_recipe in gains.values() for each in by_recipe}
    if "soft" in kinds:
        text += (
            "\nsoft labels of random real images: of the network that labelled the set, or else of "
            "one trained on the whole training set"
        )
    if "teacher" in kinds:
        text += "\nteacher: such a network's labels of every augmented, mixed batch"
    return text


def score_table(scores: Mapping[tuple[str, str], Scores]) -> str:
    """A line for every set and network; nothing where there is no score."""
    columns = {
        "LRS": [each.label_robust for each in scores.values()],
        "ARS": [each.augmentation_robust for each in scores.values()],
    }
    shown = {name: column for name, column in columns.items() if any(column)}
    if not shown:
        return ""
    rows = [["set", "network", *shown]]
    for names, *values in zip(scores, *shown.values(), strict=True):
        rows.append([*names, *("" if one is None else percent(one.summary()) for one in values)])
    return f"{TITLE}\n{_aligned(rows, num_names=2)}"


def save_accuracies(path: Path, table: Mapping[str, Mapping[str, Accuracy]]) -> None:
    """Write a CSV file with a line for every set and network; accuracies are fractions."""
    first = next(accuracy for row in table.values() for accuracy in row.values())
    header = ("set", "network", "mean", "std", "seeds", *_moment_names("best_", first))
    rows: list[Sequence[Any]] = [header]
    for name, row in table.items():
        for network, accuracy in row.items():
            rows.append((name, network, *accuracy.summary().values(), *_best_moments(accuracy)))
    write_csv(path, rows)


def save_gains(path: Path, gains: Mapping[tuple[str, str], Sequence[Gain]]) -> None:
    """Write a CSV file with a line for every set, network and recipe; accuracies are fractions."""
    first = next(iter(gains.values()))[0]
    rows: list[Sequence[Any]] = [
        ("set", "network", "labels", "augmentation", "mean", "std", "random_real_mean",
         "random_real_std", "gain_mean", "gain_std", "seeds",
         *_moment_names("best_", first.synthetic),
         *_moment_names("random_real_best_", first.random_real))
    ]  # fmt: skip
    for names, by_recipe in gains.items():
        for each in by_recipe:
            accuracies = (each.synthetic, each.random_real, each.gain)
            moments = [moment for one in accuracies for moment in (one.mean, one.std)]
            best = [moment for one in accuracies[:2] for moment in _best_moments(one)]
            rows.append((*names, *each.recipe, *moments, len(each.gain.values), *best))
    write_csv(path, rows)


def _columns(name: str, accuracy: Accuracy) -> list[str]:
    return [name, "best over epochs"] if accuracy.best else [name]


def _percents(accuracy: Accuracy) -> list[str]:
    """Of the last tests, and of the best ones where there are more."""
    return [percent(each.summary()) for each in (accuracy, *_best(accuracy))]


def _best(accuracy: Accuracy) -> list[Accuracy]:
    return [Accuracy(accuracy.best)] if accuracy.best else []


def _moment_names(prefix: str, accuracy: Accuracy) -> list[str]:
    return [f"{prefix}over_epochs_{each}" for each in ("mean", "std")] if accuracy.best else []


def _best_moments(accuracy: Accuracy) -> list[float]:
    return [moment for each in _best(accuracy) for moment in (each.mean, each.std)]


def _aligned(rows: Sequence[Sequence[str]], num_names: int) -> str:
    """Columns with names to the left, those with numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < num_names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
