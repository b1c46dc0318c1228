"""Which distillations, baselines and experts settings need, where they lie, and running them."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mim4dd.distill.config.commands import DistillConfig, ExpertsConfig, TaskSettings, part
from mim4dd.distill.evaluation.recipe import Evaluation
from mim4dd.distill.experts.train import ExpertBuffer, train_experts
from mim4dd.distill.files.atomic import read_json, write_json
from mim4dd.distill.files.fields import require_each, require_fields
from mim4dd.distill.files.regular import naming
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.identity.describe import differences, named_differences
from mim4dd.distill.methods import METHODS
from mim4dd.distill.networks import NETWORKS
from mim4dd.distill.runtime.interruption import stopping_at_once
from mim4dd.distill.runtime.processes import run_parallel
from mim4dd.distill.runtime.progress import progress_bar
from mim4dd.distill.runtime.ranks import from_first, leads
from mim4dd.distill.settings import options_of
from mim4dd.distill.sweep.grid import Setting
from mim4dd.distill.sweep.job import Job, held_out_data, run_job

__all__ = [
    "claim",
    "claim_sources",
    "distillation_job",
    "random_real_job",
    "run_jobs",
    "run_queue",
    "train_needed_experts",
]

# What came later, as it was before.
_LATER = {("stream", False), ("precision", "float32")}
# What the accuracy of real images depends on, beside task and seed.
_RECIPE = options_of(Evaluation).keys() | {"ipc", "lr_teacher"}
_DATA = ("data", "data_path", "image_size", "zca")
# Experts do not depend on how many of them are trained at a time, and where.
_NOT_OF_EXPERTS = {"device", "devices", "download", "keep_bytes", "workers"}


def claim(out: Path, base: Setting) -> None:
    """Note the base setting in ``out``, or require the one that is noted.

    Raises:
        ValueError: If ``out`` holds a sweep around another base.
    """
    note = out / "sweep.json"
    values = {"base": base.config.options(), "experts": _of_experts(base.experts.options())}
    if leads() and not note.exists():
        write_json(note, values)
    noted = from_first(lambda: read_json(note))
    kinds: dict[str, type[TaskSettings]] = {"base": DistillConfig, "experts": ExpertsConfig}
    with naming(note):
        require_fields(noted, str(note), base=dict, experts=dict)
        stored = {
            group: kind.complete(kind.read(noted[group], str(note)))
            for group, kind in kinds.items()
        }
    stored["experts"] = _of_experts(stored["experts"])
    found = differences(stored, values)
    if found:
        raise ValueError(
            f"{out} holds a sweep around another base, which differs in (there → here) "
            f"{named_differences(found)}; choose another --out"
        )


def claim_sources(out: Path, settings: Iterable[Setting]) -> None:
    """Note what data and given experts of the settings hold, or require what is noted.

    A finished distillation is known by its options alone, which name a folder and not what is in
    it. Loads each data set once.

    Raises:
        ValueError: If a data set or folder of experts holds something else than it did.
    """
    note = out / "sources.json"
    stored = from_first(lambda: read_json(note) if note.exists() else {})
    require_each(stored, str(note), dict)
    sources = {}
    for config in (setting.config for setting in settings):
        options = {name: getattr(config, name) for name in _DATA}
        if config.stream:  # else known by what it was known by before there were streams
            options["stream"] = True
        key = f"data {json.dumps(options, sort_keys=True)}"
        if key not in sources:
            sources[key] = describe_data(config.load_data())
        if config.experts and METHODS[config.method_name].needs_experts:
            sources[f"experts {config.experts}"] = ExpertBuffer(config.experts).identity()
    for key, source in sources.items():
        found = differences(stored.get(key, source), source)
        if found:
            raise ValueError(
                f"{out} holds distillations of other {key} (then → now): "
                f"{named_differences(found)}; choose another --out"
            )
    if leads():
        write_json(note, stored | sources)


def distillation_job(setting: Setting, seed: int, out: Path, held_out: float = 0.0) -> Job:
    """The distillation by a setting with a seed; its experts lie in ``out`` too."""
    changes: dict[str, Any] = {"seed": seed}
    if METHODS[setting.config.method_name].needs_experts:
        changes["experts"] = setting.config.experts or str(_expert_folder(setting, out))
    config = setting.config.but(**changes)
    split_seed = setting.config.seed
    return Job(config, out / "runs" / setting.folder / f"seed{seed}", held_out, split_seed)


def random_real_job(setting: Setting, seed: int, out: Path) -> Job:
    """The baseline of a setting with a seed: settings with one recipe share it."""
    recipe = part(setting.config, TaskSettings).options()
    recipe |= {name: getattr(setting.config, name) for name in _RECIPE}
    if setting.config.ipc_by_class is not None:  # else folders are named as ever
        recipe["ipc_by_class"] = setting.config.ipc_by_class
    path = out / "random_real" / _digest(recipe) / f"seed{seed}"
    return Job(DistillConfig.of(**recipe, seed=seed), path, baseline=True)


def run_jobs(jobs: Sequence[Job], workers: int) -> None:
    """Run the jobs that have no result yet, each in a process of its own.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM, once the distillations at work saved where they are.
    """
    waiting = from_first(lambda: [job for job in jobs if not job.result.exists()])
    done = len(jobs) - len(waiting)
    with (
        stopping_at_once(
            lambda: f"stopped with {done} of {len(jobs)} runs done; the same command continues"
        ),
        progress_bar(len(jobs), "sweep", initial=done) as bar,
    ):
        for _ in run_parallel(_runner, waiting, workers, fresh=True):
            done += 1
            bar.update()


def run_queue(jobs: Iterable[Job], workers: int, progress: Callable[[], str]) -> None:
    """Run jobs, each in a process of its own; the next one is asked for when a worker is free.

    Args:
        jobs: What to run.
        workers: Processes at the same time.
        progress: Says how far it got, where it is stopped.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM, once the distillations at work saved where they are.
    """
    with stopping_at_once(lambda: f"stopped with {progress()}; the same command continues"):
        for _ in run_parallel(_runner, jobs, workers, fresh=True):
            pass


def _runner(_worker: int) -> Callable[[Job], None]:
    return run_job


def train_needed_experts(
    settings: Sequence[Setting], out: Path, workers: int, held_out: float = 0.0
) -> None:
    """Train the experts that are missing: settings with the same data and network share them."""
    needed = {
        _expert_folder(setting, out): setting
        for setting in settings
        if METHODS[setting.config.method_name].needs_experts and not setting.config.experts
    }
    for folder, setting in needed.items():
        config = setting.experts
        # Those that are there are kept, once it is seen that they are of this data.
        data = held_out_data(config, held_out, setting.config.seed)
        train_experts(
            config.make_network, config.network_title, data, config, folder, workers=workers
        )


def _of_experts(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that tell experts apart."""
    return {name: options[name] for name in options if name not in _NOT_OF_EXPERTS}


def _expert_folder(setting: Setting, out: Path) -> Path:
    return out / "experts" / _digest(_of_experts(setting.experts.options()))


def _digest(options: Mapping[str, Any]) -> str:
    """A name for a folder, the same as ever: norm and pooling were null where they are default."""
    defaults = NETWORKS[options["network"]].settings()
    named = {
        name: None if name in ("norm", "pooling") and value == getattr(defaults, name) else value
        for name, value in options.items()
        if name not in ("download", "keep_bytes")  # by which samples are the same
        and (name, value) not in _LATER
    }
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:8]
