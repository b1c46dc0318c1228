"""The command line: mim4dd experts | distill | evaluate | compare | show | doctor."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from mim4dd.distill.config import (
    CompareConfig,
    DistillConfig,
    ExpertsConfig,
    TaskSettings,
    check_options,
    read_config,
)
from mim4dd.distill.settings import field_help

app = typer.Typer(
    help="Dataset distillation by mutual-information maximisation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _config_file_reader(
    kind: type[TaskSettings],
) -> Callable[[typer.Context, Path | None], Path | None]:
    def read(context: typer.Context, path: Path | None) -> Path | None:
        """Make the file's values the defaults, which the command line overrides."""
        if path is not None:
            from mim4dd.distill.storage import read_json

            values = read_json(path)
            check_options(values, kind, str(path))
            context.default_map = {**(context.default_map or {}), **values}
        return path

    return read


def _on_command_line(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _with_options(kind: type[TaskSettings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every field of a configuration as an option, and the filled-in configuration.

    The dataclass stays the only place where an option, its default and its help are written.
    """
    hints, texts = get_type_hints(kind), field_help(kind)
    names = [option.name for option in fields(kind)]
    options = [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=Annotated[hints[option.name], typer.Option(help=texts[option.name])],
        )
        for option in fields(kind)
    ]
    options.append(
        inspect.Parameter(
            "config_file",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None,
                typer.Option(
                    "--config",
                    help="JSON file of options, such as a run's config.json.",
                    is_eager=True,
                    callback=_config_file_reader(kind),
                ),
            ],
        )
    )

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(command).parameters.values()
            if parameter.name != "config"
        ]

        def run(**values: Any) -> None:
            del values["config_file"]  # its callback has read it
            config = kind(**{name: values.pop(name) for name in names})
            command(config=config, **values)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        # Typer reads the options from the signature, which types say a function has not.
        run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
        run.__annotations__ = {
            parameter.name: parameter.annotation for parameter in [*own, *options]
        }
        return run

    return decorate


@app.command()
@_with_options(ExpertsConfig)
def experts(
    config: ExpertsConfig,
    out: Annotated[Path, typer.Option(help="Folder for the trajectories.")] = Path("runs/experts"),
) -> None:
    """Train expert trajectories on the real data; continue where a former call stopped."""
    from mim4dd.distill.experts import train_experts

    data = config.load_data()
    buffer = train_experts(
        lambda: config.make_network(data), config.network_name, data, config, out
    )
    accuracies = [header["accuracy"] for header in buffer.headers]
    typer.echo(
        f"{len(buffer)} experts of {buffer.num_epochs} epochs in {out}, "
        f"test accuracy {min(accuracies):.3f} to {max(accuracies):.3f}"
    )


@app.command()
@_with_options(DistillConfig)
def distill(
    config: DistillConfig,
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Run directory to make.")] = Path("runs/distill"),
    resume: Annotated[
        Path | None, typer.Option(help="Run directory to continue, with its own options.")
    ] = None,
) -> None:
    """Distil a synthetic set by MTT + MIM4DD, or MTT alone with --weight 0."""
    from mim4dd.distill.compare import draw_run, judge, run_distillation
    from mim4dd.distill.run import RunDirectory

    run = RunDirectory(out if resume is None else resume)
    if resume is not None:
        given = [
            f"--{name.replace('_', '-')}"
            for name in context.params
            if name != "resume" and _on_command_line(context, name)
        ]
        if given:
            raise ValueError(
                f"--resume takes the run's own options, got {', '.join(given)} as well"
            )
        config = read_config(run.config, DistillConfig)
    else:
        run.require_new()
    data = config.load_data()
    result = run_distillation(config, data, run)
    accuracy = judge(result, data, config)
    typer.echo(
        f"{run.synthetic}: test accuracy {100 * accuracy.mean:.1f} ± {100 * accuracy.std:.1f} % "
        f"over {len(accuracy.values)} networks"
    )
    for picture in draw_run(run, data.name):
        typer.echo(str(picture))


@app.command()
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


@app.command()
@_with_options(CompareConfig)
def compare(
    config: CompareConfig,
    out: Annotated[Path, typer.Option(help="Directory for everything.")] = Path("runs/compare"),
    install_seconds: Annotated[
        float | None, typer.Option(help="What installing took, for the summary.", hidden=True)
    ] = None,
) -> None:
    """Train experts, distil by MTT and by MTT + MIM4DD, and compare both with the baselines."""
    from mim4dd.distill.compare import compare as run_comparison
    from mim4dd.distill.compare import comparison_table

    summary = run_comparison(config, out, install_seconds)
    typer.echo(comparison_table(summary))
    for picture in summary["pictures"]:
        typer.echo(picture)


@app.command()
def show(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    out: Annotated[Path, typer.Option(help="PNG file for the curves of all runs.")] = Path(
        "runs/curves.png"
    ),
) -> None:
    """Draw the synthetic images of runs, and their curves over each other."""
    from mim4dd.distill.compare import draw_run
    from mim4dd.distill.pictures import save_curves
    from mim4dd.distill.run import RunDirectory, SyntheticSet

    directories = [RunDirectory(path) for path in runs]
    for run in directories:
        for picture in draw_run(run, run.read_config()["data"]):
            typer.echo(str(picture))
    if len(directories) > 1:
        num_classes = len(SyntheticSet.load(directories[0].synthetic).class_names)
        save_curves(out, {str(run.path): run.read_metrics() for run in directories}, num_classes)
        typer.echo(str(out))


@app.command()
def doctor() -> None:
    """Report what is built, for which GPUs, and why something is not."""
    from mim4dd.doctor import report

    text, healthy = report()
    typer.echo(text)
    raise typer.Exit(0 if healthy else 1)
