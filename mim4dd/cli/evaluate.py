"""mim4dd evaluate."""

from pathlib import Path
from typing import Annotated

import typer

from mim4dd.distill.config import DistillConfig, TaskSettings, read_config

__all__ = ["evaluate"]


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Finished run directories.")],
    num_eval: Annotated[int | None, typer.Option(help="Networks to train; else the run's.")] = None,
    eval_steps: Annotated[
        int | None, typer.Option(help="SGD steps of each; else the run's.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also random real images, and the whole training set.")
    ] = True,
) -> None:
    """Train fresh networks on distilled sets and test them on held-out real images."""
    from mim4dd.distill.compare import accuracy_table, baseline_accuracies, judge
    from mim4dd.distill.config import option_names, part
    from mim4dd.distill.evaluate import Evaluation
    from mim4dd.distill.run import RunDirectory, SyntheticSet

    given = {"num_eval": num_eval, "eval_steps": eval_steps}
    changes = {name: value for name, value in given.items() if value is not None}
    configs = [
        part(read_config(RunDirectory(path).config, DistillConfig), DistillConfig, **changes)
        for path in runs
    ]
    shared = option_names(TaskSettings) | option_names(Evaluation) | {"ipc", "lr_teacher"}
    differing = [
        name for name in sorted(shared) if len({getattr(config, name) for config in configs}) > 1
    ]
    if baselines and differing:
        raise ValueError(
            "runs must share what the baselines depend on to stand beside them, these differ in "
            f"{', '.join(differing)}; --no-baselines leaves the baselines out"
        )
    accuracies = {}
    for path, config in zip(runs, configs, strict=True):
        data = config.load_data()
        synthetic = SyntheticSet.load(RunDirectory(path).synthetic)
        accuracies[str(path)] = judge(synthetic, data, config)
    if baselines:
        random_real, full = baseline_accuracies(config, data)
        accuracies[f"{config.ipc} random real images per class"] = random_real
        accuracies["whole training set"] = full
    typer.echo(accuracy_table({name: value.summary() for name, value in accuracies.items()}))
