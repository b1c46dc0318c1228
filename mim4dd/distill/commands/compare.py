"""The main job end to end: a method, the same with MIM4DD, and both beside honest baselines."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mim4dd.distill.commands.compare_work import distill_all, judge_all, workers_at
from mim4dd.distill.config.commands import CompareConfig, DistillConfig, part
from mim4dd.distill.data import ImageData
from mim4dd.distill.data.per_class import class_counts
from mim4dd.distill.evaluation.dd_ranking import TITLE, score_hard_labels
from mim4dd.distill.evaluation.recipe import Accuracy, percent
from mim4dd.distill.experts.train import train_experts
from mim4dd.distill.files.atomic import require_writable, write_json
from mim4dd.distill.files.hold import hold
from mim4dd.distill.job import note_accuracy, require_same_options
from mim4dd.distill.methods import METHODS
from mim4dd.distill.pictures import save_curves, save_grid
from mim4dd.distill.report.show import draw_run
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.runs.metrics import final_bound
from mim4dd.distill.runtime.interruption import stopping_at_once
from mim4dd.distill.runtime.processes import start_worker_server
from mim4dd.distill.runtime.ranks import leads
from mim4dd.distill.runtime.threads import workers_for
from mim4dd.distill.spread import CONFIDENCE, Spread

__all__ = ["accuracy_table", "compare", "comparison_table"]

_Runs = dict[str, list[tuple[DistillConfig, RunDirectory]]]  # by method


def compare(
    config: CompareConfig,
    out: Path,
    install_seconds: float | None = None,
    *,
    workers: int | None = None,
    paper: bool = False,
) -> dict[str, Any]:
    """Distil by a method alone and with MIM4DD, and judge both beside the baselines.

    An interrupted call continues where it stopped. Nothing is chosen by the test images: the set
    after the last iteration counts.

    Args:
        config: All options.
        out: Where experts, runs, pictures and ``summary.json`` go.
        install_seconds: What installing took, for the summary.
        workers: Processes that work at the same time. By default one where the networks are large
            enough for all threads, or the user set their number, else one for each thread.
        paper: Draw at the size of a paper, as PDF and SVG beside PNG.

    Returns:
        The summary, as the file holds it.

    Raises:
        ValueError: If ``workers`` is below 1, or an option does not fit the data, or ``out`` holds
            something else.
        FloatingPointError: If an expert or a distillation diverges.
        BlockingIOError: If another process is at work in ``out``.
        Interrupted: After Ctrl-C or SIGTERM, once the distillations at work have saved their state.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    with (
        stopping_at_once(lambda: f"stopped; the same command continues {out}"),
        hold(out, lock=leads()),
    ):
        return _compare(config, out, install_seconds, workers, paper)


def _compare(
    config: CompareConfig,
    out: Path,
    install_seconds: float | None,
    workers: int | None,
    paper: bool,
) -> dict[str, Any]:
    started = time.perf_counter()
    folder = config.experts or str(out / "experts")
    runs = _runs(config, out, folder)
    for each, run in (pair for group in runs.values() for pair in group):
        require_same_options(each, run)  # before experts are trained, which takes the longest
    # How large the work is, is known when the data is there: these are for the smallest.
    most_workers = workers or workers_for(0, torch.device(config.device))
    if most_workers > 1 and not (out / "summary.json").exists():
        start_worker_server()
    data = config.load_data()
    data.require(config.per_class)  # of real images, for the baseline
    require_writable(out / "summary.json")
    expert_seconds: float | None = None
    if METHODS[config.method_name].needs_experts and not config.experts:
        experts = train_experts(
            config.make_network,
            config.network_title,
            data,
            config,
            folder,
            workers=workers_at(config, data, config.batch_train, workers),
        )
        expert_seconds = experts.seconds
    done = _distil_and_judge(config, data, runs, workers, out / "pictures", paper)
    accuracies = done.accuracies
    summary = {
        "dataset": data.name,
        "method": config.method_name,
        # Of all processes together, and of earlier calls that were interrupted; then of this call.
        "seconds": {
            "install": install_seconds,
            "experts": expert_seconds,
            "distill": sum(
                run.load_checkpoint()[1]["seconds"] for group in runs.values() for _, run in group
            ),
            "evaluate": done.evaluate_seconds,
        },
        "elapsed_seconds": time.perf_counter() - started,
        "accuracy": {
            "full": accuracies["full"].summary(),
            "ipc": {
                config.ipc_title: {
                    "random_real": accuracies["random_real"].summary(),
                    **{name: _summary(accuracies[name], config) for name in runs},
                }
            },
        },
        "label_robust_score": {
            name: _summary(score, config) for name, score in done.label_robust_scores.items()
        },
        "mim4dd_gain": _gain(accuracies, config),
        "mi_lower_bound": {
            "nats": statistics.fmean(
                bound
                for _, run in runs[f"{config.method_name}+mim4dd"]
                if (bound := final_bound(run.read_metrics())) is not None
            ),
            "log_num_classes": math.log(data.num_classes),
        },
        "num_distill": config.num_distill,
        "pictures": [str(picture) for picture in done.pictures],
    }
    if leads():
        write_json(out / "summary.json", summary)
    return summary


class _Done(NamedTuple):
    """What the distilled sets are worth, and how they look."""

    accuracies: dict[str, Accuracy]
    label_robust_scores: dict[str, Accuracy]  # of the methods whose sets have hard labels
    evaluate_seconds: float
    pictures: list[Path]


def _distil_and_judge(
    config: CompareConfig,
    data: ImageData,
    runs: _Runs,
    workers: int | None,
    folder: Path,
    paper: bool,
) -> _Done:
    """Pictures take seconds of one core: they are drawn while the workers are at work."""
    num_syn = sum(class_counts(config.per_class, data.num_classes))
    drawing = ThreadPoolExecutor(max_workers=1)
    drawn: list[Future[Any]] = []

    def draw(run: RunDirectory) -> None:
        drawn.append(drawing.submit(draw_run, run, data.name, paper=paper))

    try:
        distill_all(
            [each for group in runs.values() for each in group],
            data,
            workers_at(config, data, num_syn, workers),
            draw if leads() else lambda _: None,
        )
        sets = {name: [run.load_result() for _, run in group] for name, group in runs.items()}
        pictures: Future[list[Path]] | None = None
        if leads():
            pictures = drawing.submit(_draw, config, data, sets, runs, folder, paper)
        accuracies, seconds = judge_all(
            config, data, sets, workers_at(config, data, config.eval_batch, workers)
        )
        for each in drawn:
            each.result()
        for name, group in runs.items() if leads() else ():
            values = iter(accuracies[name].values)  # of one set after another
            for (_, run), synthetic in zip(group, sets[name], strict=True):
                of_set = Accuracy(tuple(islice(values, config.num_eval)))
                note_accuracy(run, synthetic, config, of_set)
        scores = _label_robust_scores(accuracies, sets)
        paths = [] if pictures is None else pictures.result()
        return _Done(accuracies, scores, seconds, paths)
    finally:
        drawing.shutdown(cancel_futures=True)


def _label_robust_scores(
    accuracies: Mapping[str, Accuracy], sets: Mapping[str, Sequence[SyntheticSet]]
) -> dict[str, Accuracy]:
    """By the method; soft labels had random real images with soft ones to beat."""
    full, random_real = accuracies["full"], accuracies["random_real"]
    return {
        name: score_hard_labels(full, accuracies[name], random_real)
        for name, group in sets.items()
        if not any(each.label_syn.is_floating_point() for each in group)
    }


def _runs(config: CompareConfig, out: Path, experts: str) -> _Runs:
    """Options and directories of all distillations, by method."""
    if METHODS[config.method_name].needs_experts:
        config = config.but(experts=experts)
    return {
        name: [
            (
                part(config, DistillConfig, seed=seed, weight=weight),
                RunDirectory(out / name / f"seed{seed}"),
            )
            for seed in range(config.seed, config.seed + config.num_distill)
        ]
        for name, weight in zip(
            _titles(config.method_name), (0.0, config.add_on.weight), strict=True
        )
    }


def _titles(method: str) -> dict[str, str]:
    """Names of both sides, and what they are called."""
    title = METHODS[method].title
    return {method: title, f"{method}+mim4dd": f"{title} + MIM4DD"}


def _means(accuracy: Accuracy, config: CompareConfig) -> list[float]:
    """What every distillation counts, of the networks on all sets of a method."""
    values = iter(accuracy.values)
    return [statistics.fmean(islice(values, config.num_eval)) for _ in range(config.num_distill)]


def _summary(accuracy: Accuracy, config: CompareConfig) -> dict[str, float | int | None]:
    """Over the distillations of a method: networks of one set are not independent."""
    spread = Spread.of(_means(accuracy, config))
    return {
        "mean": spread.mean,
        "std": spread.std,
        "seeds": spread.count,
        "networks": len(accuracy.values),
    }


def _gain(accuracies: dict[str, Accuracy], config: CompareConfig) -> dict[str, float | int | None]:
    """What MIM4DD adds, over pairs of distillations with the same seeds."""
    method = config.method_name
    both = (_means(accuracies[name], config) for name in (f"{method}+mim4dd", method))
    gain = Spread.of_gains(zip(*both, strict=True))
    low, high = gain.interval() or (None, None)
    return {
        "mean": gain.mean,
        "std": gain.std,
        "seeds": gain.count,
        "low": low,
        "high": high,
        "p": gain.p_value(),
    }


def _draw(
    config: CompareConfig,
    data: ImageData,
    sets: dict[str, list[SyntheticSet]],
    runs: _Runs,
    folder: Path,
    paper: bool,
) -> list[Path]:
    """Draw what each set looks like and all curves over each other."""
    images, labels = data.sample(config.per_class, torch.Generator().manual_seed(config.eval_seed))
    grids = {"random_real": ("random real images", data.normalization.inverse(images), labels)}
    titles = _titles(config.method_name)
    for name, title in titles.items():
        first = sets[name][0]
        grids[name] = (title, first.pixels, first.class_syn)
    paths = []
    for name, (title, pixels, shown_labels) in grids.items() if data.has_images else ():
        caption = f"{data.name}, ipc {config.ipc_title}: {title}"
        path = folder / f"{name}.png"
        paths += save_grid(path, pixels, shown_labels, data.class_names, caption, paper=paper)
    curves = {
        f"{titles[name]}, {run.path.name}" if config.num_distill > 1 else titles[name]: (
            run.read_metrics()
        )
        for name, group in runs.items()
        for _, run in group
    }
    return paths + save_curves(folder / "curves.png", curves, data.num_classes, paper=paper)


def accuracy_table(accuracies: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per set, or per method with all its sets: accuracy in percent, and of how many.

    A method has mean ± deviation over its distillations; one set has the deviation over its
    networks in brackets.
    """
    width = max(len(name) for name in accuracies)
    return "\n".join(
        f"{name:<{width}}  {_accuracy_text(stats)}" for name, stats in accuracies.items()
    )


def _accuracy_text(stats: Mapping[str, Any]) -> str:
    if "networks" not in stats:
        return f"{percent(stats)} %  of {stats['seeds']} networks"
    sets = "1 distillation" if stats["seeds"] == 1 else f"{stats['seeds']} distillations"
    return f"{_spread(stats).text(100)} %  of {sets}, {stats['networks']} networks"


def _spread(stats: Mapping[str, Any]) -> Spread:
    return Spread(stats["mean"], stats["std"], stats["seeds"])


def _gain_text(gain: Spread) -> str:
    text = f"{gain.text(100, sign='+')} points"
    if gain.std is None:
        return text
    return (
        f"{text} ({100 * CONFIDENCE:.0f} % interval {gain.interval_text(100)}, "
        f"p {gain.p_value():.2f}, {gain.count} pairs of distillations)"
    )


def _score_lines(summary: Mapping[str, Any], titles: Mapping[str, str]) -> list[str]:
    scores = {
        f"LRS of {titles[name]}": _spread(stats).text(100)
        for name, stats in summary["label_robust_score"].items()
    }
    if not scores:
        return []
    width = max(map(len, scores))
    return [TITLE, *(f"{name:<{width}}  {text}" for name, text in scores.items())]


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
            f"{summary['dataset']}: accuracy on held-out real images; ± over distillations, in "
            "brackets over networks",
            accuracy_table(accuracies),
            *_score_lines(summary, titles),
            f"MIM4DD adds {_gain_text(_spread(gain))} to {titles[summary['method']]}",
            f"MI lower bound {bound['nats']:.2f} nats; between classes alone at most "
            f"log C = {bound['log_num_classes']:.2f}",
            "time: " + ", ".join(spent) + f"; {summary['elapsed_seconds']:.0f} s by the clock",
        ]
    )
