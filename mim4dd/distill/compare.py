"""The main job end to end: a method, the same with MIM4DD, and both beside honest baselines."""

import math
import statistics
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mim4dd.distill.config import CompareConfig, DistillConfig, part
from mim4dd.distill.data import ImageData
from mim4dd.distill.evaluate import (
    Accuracy,
    evaluate,
    evaluate_full,
    evaluate_random_real,
    percent,
)
from mim4dd.distill.experts import train_experts
from mim4dd.distill.loop import distill
from mim4dd.distill.methods import METHODS
from mim4dd.distill.pictures import save_curves, save_grid
from mim4dd.distill.report import final_bound
from mim4dd.distill.run import RunDirectory, SyntheticSet
from mim4dd.distill.settings import check_options
from mim4dd.distill.show import draw_run
from mim4dd.distill.storage import require_writable, write_json

__all__ = [
    "accuracy_table",
    "baseline_accuracies",
    "compare",
    "comparison_table",
    "judge",
    "run_distillation",
]


def judge(synthetic: SyntheticSet, data: ImageData, config: DistillConfig) -> Accuracy:
    """Evaluate a distilled set by the configuration's recipe, with the step size it comes with.

    Raises:
        ValueError: If the set was made of other data.
    """
    synthetic.require_data(data)
    synthetic = synthetic.to(config.device)
    return evaluate(
        lambda: config.make_network(data),
        synthetic.image_syn,
        synthetic.label_syn,
        synthetic.syn_lr.item(),
        data,
        config,
    )


def run_distillation(
    config: DistillConfig,
    data: ImageData,
    run: RunDirectory,
    *,
    resume: bool = True,
    from_iteration: int | None = None,
    may_change: Collection[str] = (),
) -> SyntheticSet:
    """Distil into ``run``: start it, continue it, or read its result if it is finished.

    Args:
        config: All options.
        data: What :meth:`DistillConfig.load_data` gave, or a part of it.
        run: Where it goes.
        resume: Without it a directory that holds a run is refused.
        from_iteration: Go back to this checkpoint first.
        may_change: Options that may be others than the run's.

    Raises:
        ValueError: If ``run`` holds a run with other options, or of other data.
    """
    if run.config.exists():
        _require_same_options(config, run, may_change)
    method = config.make_method(data)
    if not run.config.exists():  # only now, so that options that cannot work leave no run behind
        run.create(asdict(config))
    # Two networks show how a curve goes; the accuracies that count are of num_eval.
    glance = part(config, DistillConfig, num_eval=min(2, config.num_eval))
    return distill(
        method,
        data,
        config,
        run,
        lambda synthetic: judge(synthetic, data, glance),
        resume=resume,
        from_iteration=from_iteration,
        config=asdict(config),
    )


def _require_same_options(
    config: DistillConfig, run: RunDirectory, may_change: Collection[str]
) -> None:
    # Values alone: what the run was started with, such as its device, need not work here.
    values = run.read_config()
    check_options(values, DistillConfig, str(run.config))
    stored = {option.name: option.default for option in fields(DistillConfig)} | values
    asked = asdict(config)
    differing = [
        f"{name}: {stored[name]!r} → {asked[name]!r}"
        for name in asked
        if asked[name] != stored[name] and name not in may_change
    ]
    if differing:
        raise ValueError(
            f"{run.path} holds a run with another {'; '.join(differing)}; choose another --out"
        )


def compare(config: CompareConfig, out: Path, install_seconds: float | None) -> dict[str, Any]:
    """Distil by a method alone and with MIM4DD, and judge both beside the baselines.

    An interrupted call continues where it stopped. Nothing is chosen by the test images: the set
    after the last iteration counts.

    Args:
        config: All options.
        out: Where experts, runs, pictures and ``summary.json`` go.
        install_seconds: What installing took, for the summary.

    Returns:
        The summary, as the file holds it.
    """
    data = config.load_data()
    data.require(config.ipc)  # of real images, for the baseline
    require_writable(out / "summary.json")
    folder = config.experts or str(out / "experts")
    expert_seconds: float | None = None
    if METHODS[config.method].needs_experts and not config.experts:
        experts = train_experts(config.make_network, config.network_name, data, config, folder)
        expert_seconds = experts.seconds
    titles = _titles(config.method)
    runs: dict[str, list[RunDirectory]] = {name: [] for name in titles}
    sets: dict[str, list[SyntheticSet]] = {name: [] for name in titles}
    for seed in range(config.seed, config.seed + config.num_distill):
        for name in titles:
            options = part(
                config,
                DistillConfig,
                experts=folder,
                seed=seed,
                weight=0.0 if name == config.method else config.weight,
            )
            run = RunDirectory(out / name / f"seed{seed}")
            sets[name].append(run_distillation(options, data, run))
            runs[name].append(run)
            draw_run(run, data.name)

    started = time.perf_counter()
    accuracies = _accuracies(config, data, sets)
    evaluate_seconds = time.perf_counter() - started
    pictures = _draw(config, data, sets, runs, out / "pictures")
    every_run = [run for group in runs.values() for run in group]
    summary = {
        "dataset": data.name,
        "method": config.method,
        "seconds": {
            "install": install_seconds,
            "experts": expert_seconds,
            "distill": sum(run.load_checkpoint()[1]["seconds"] for run in every_run),
            "evaluate": evaluate_seconds,
        },
        "accuracy": {
            "full": accuracies["full"].summary(),
            "ipc": {
                str(config.ipc): {
                    name: accuracies[name].summary() for name in ("random_real", *titles)
                }
            },
        },
        "mim4dd_gain": _gain(accuracies, config.method),
        "mi_lower_bound": {
            "nats": statistics.fmean(
                bound
                for run in runs[f"{config.method}+mim4dd"]
                if (bound := final_bound(run.read_metrics())) is not None
            ),
            "log_num_classes": math.log(data.num_classes),
        },
        "num_distill": config.num_distill,
        "pictures": [str(picture) for picture in pictures],
    }
    write_json(out / "summary.json", summary)
    return summary


def baseline_accuracies(config: DistillConfig, data: ImageData) -> tuple[Accuracy, Accuracy]:
    """What random real images of the same count reach by the same recipe, and all of them."""

    def make_network() -> nn.Module:
        return config.make_network(data)

    return (
        evaluate_random_real(make_network, config.ipc, config.lr_teacher, data, config),
        evaluate_full(make_network, config.ipc, config.lr_teacher, data, config),
    )


def _titles(method: str) -> dict[str, str]:
    """Names of both sides, and what they are called."""
    title = METHODS[method].title
    return {method: title, f"{method}+mim4dd": f"{title} + MIM4DD"}


def _accuracies(
    config: CompareConfig, data: ImageData, sets: dict[str, list[SyntheticSet]]
) -> dict[str, Accuracy]:
    """Baselines and methods by one recipe; a method's values are of all its sets."""
    random_real, full = baseline_accuracies(config, data)
    accuracies = {"random_real": random_real, "full": full}
    for method, group in sets.items():
        judged = [judge(synthetic, data, config).values for synthetic in group]
        accuracies[method] = Accuracy(tuple(value for values in judged for value in values))
    return accuracies


def _gain(accuracies: dict[str, Accuracy], method: str) -> dict[str, float | int]:
    """What MIM4DD adds, over pairs of networks with the same seeds."""
    return accuracies[f"{method}+mim4dd"].gain_over(accuracies[method]).summary()


def _draw(
    config: CompareConfig,
    data: ImageData,
    sets: dict[str, list[SyntheticSet]],
    runs: dict[str, list[RunDirectory]],
    folder: Path,
) -> list[Path]:
    """Draw what each set looks like and all curves over each other."""
    images, labels = data.sample(config.ipc, torch.Generator().manual_seed(config.eval_seed))
    grids = {"random_real": ("random real images", data.normalization.inverse(images), labels)}
    titles = _titles(config.method)
    for name, title in titles.items():
        first = sets[name][0]
        grids[name] = (title, first.pixels, first.class_syn)
    paths = []
    for name, (title, pixels, shown_labels) in grids.items() if data.has_images else ():
        paths.append(folder / f"{name}.png")
        caption = f"{data.name}, ipc {config.ipc}: {title}"
        save_grid(paths[-1], pixels, shown_labels, data.class_names, caption)
    curves = {
        f"{titles[name]}, {run.path.name}" if config.num_distill > 1 else titles[name]: (
            run.read_metrics()
        )
        for name, group in runs.items()
        for run in group
    }
    paths.append(folder / "curves.png")
    save_curves(paths[-1], curves, data.num_classes)
    return paths


def accuracy_table(accuracies: Mapping[str, Mapping[str, float | int]]) -> str:
    """One line per set: mean ± std in percent, and of how many networks."""
    width = max(len(name) for name in accuracies)
    return "\n".join(
        f"{name:<{width}}  {percent(stats)} %  of {stats['seeds']} networks"
        for name, stats in accuracies.items()
    )


def comparison_table(summary: dict[str, Any]) -> str:
    """The summary for people."""
    ((ipc, by_name),) = summary["accuracy"]["ipc"].items()
    accuracies = {f"{ipc} random real images per class": by_name["random_real"]}
    titles = _titles(summary["method"])
    accuracies |= {f"{ipc} per class by {title}": by_name[name] for name, title in titles.items()}
    accuracies["whole training set"] = summary["accuracy"]["full"]
    gain, bound = summary["mim4dd_gain"], summary["mi_lower_bound"]
    spent = [f"{name} {value:.0f} s" for name, value in summary["seconds"].items() if value]
    return "\n".join(
        [
            f"{summary['dataset']}: accuracy on held-out real images, mean ± std",
            accuracy_table(accuracies),
            f"MIM4DD adds {percent(gain, '+')} points to "
            f"{titles[summary['method']]} "
            f"({gain['seeds']} pairs of networks from {summary['num_distill']} distillations each)",
            f"MI lower bound {bound['nats']:.2f} nats; between classes alone at most "
            f"log C = {bound['log_num_classes']:.2f}",
            "time: " + ", ".join(spent),
        ]
    )
