"""Whether a run directory may be continued, by what, and from where."""

import warnings
from dataclasses import fields
from typing import Any

import torch

from mim4dd import __version__
from mim4dd.distill.data import ImageData
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.identity.describe import Difference, describe, differences, named_differences
from mim4dd.distill.loop.settings import MAY_CHANGE, LoopSettings
from mim4dd.distill.loop.state import Snapshot
from mim4dd.distill.methods.base import BaseMethod
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.runtime.ranks import any_rank, rank

__all__ = ["checkpoint_to_continue", "run_identity"]

# How long and how often: these change nothing that was computed already.
_OF_NO_STEP = frozenset(
    {"iterations", "memory_budget", "checkpoint_every", "eval_every", "keep_every"}
)
_VERSION = "mim4dd"  # of the library, whose code has no fingerprint


def run_identity(method: BaseMethod, data: ImageData, settings: LoopSettings) -> dict[str, Any]:
    """What a run is of: a checkpoint holds it, and whoever continues must agree."""
    loop = {field.name: getattr(settings, field.name) for field in fields(LoopSettings)}
    return {
        "settings": describe(loop),
        "method": method.identity(),
        "data": describe_data(data),
        _VERSION: __version__,
    }


def checkpoint_to_continue(
    run: RunDirectory,
    identity: dict[str, Any],
    resume: bool,
    from_iteration: int | None,
    device: torch.device,
) -> Snapshot | None:
    """The checkpoint to go on from, None to begin; every rank gets the same answer.

    Its header notes, under "changes", what is otherwise from here on. Another version of mim4dd is
    warned of.

    Raises:
        ValueError: If the directory holds a run and is not to be resumed, the run is of something
            else, its last checkpoint is gone, or there is no checkpoint of ``from_iteration``.
    """
    snapshot, refusal = None, None
    try:
        if not resume:
            if from_iteration is not None:
                raise ValueError(
                    f"from_iteration needs resume=True, got {from_iteration} without resume"
                )
            if run.started:
                run.require_new()
        elif run.checkpoint.exists():
            snapshot = Snapshot(*run.load_checkpoint(from_iteration))
            if rank() == 0:  # whose checkpoint it is; others may hold networks of their own
                snapshot = _checked(snapshot, identity, run)
        else:
            _require_nothing_to_lose(run, from_iteration)
    except ValueError as error:
        refusal = error
    # Also so that no rank writes before all have read.
    if any_rank(refusal is not None, device):
        raise refusal or ValueError(f"another rank does not continue {run.path}")
    return snapshot


def _require_nothing_to_lose(run: RunDirectory, from_iteration: int | None) -> None:
    """Require a run without a checkpoint to be one that has done no iteration yet."""
    if from_iteration is not None:
        raise ValueError(f"{run.path} has no checkpoint yet, got iteration {from_iteration}")
    if run.finished or run.read_metrics():  # which come after the first checkpoint
        left = "its result" if run.finished else "its metrics"
        raise ValueError(
            f"{run.checkpoint} is gone, so {run.path} cannot be continued, and to begin anew would "
            f"overwrite {left}: choose another directory"
        )


def _checked(snapshot: Snapshot, identity: dict[str, Any], run: RunDirectory) -> Snapshot:
    tensors, header = snapshot
    if not isinstance(header.get("identity"), dict):
        raise ValueError(
            f"{run.checkpoint} does not say what it is of, because an older mim4dd wrote it. So it "
            f"cannot be continued: start again in another directory"
        )
    found = differences(_with_later_settings(header["identity"]), identity)
    other = [each for each in found if not _may_change(each)]
    if other:
        raise ValueError(
            f"{run.path} holds another run, which differs in (there → here) "
            f"{named_differences(other)}. Of the settings only {', '.join(sorted(MAY_CHANGE))} may "
            "change when a run is continued; choose another directory"
        )
    iteration, last = header["iteration"], identity["settings"]["iterations"]
    if iteration > last:
        raise ValueError(
            f"{run.path} is at iteration {iteration}, beyond iterations {last}: ask for more, or "
            f"go back from_iteration {', '.join(map(str, run.iterations()))}"
        )
    idle = [each for each in found if each.name not in _OF_NO_STEP and each.path != _VERSION]
    if idle and iteration == last:
        raise ValueError(
            f"{run.path} is finished, so {named_differences(idle)} would change nothing: ask for "
            f"more iterations than {last}, or go back from_iteration "
            f"{', '.join(map(str, run.iterations()))}"
        )
    for each in found:
        if each.path == _VERSION:
            warnings.warn(
                f"{run.path} is continued by another version of mim4dd, which may compute "
                f"otherwise (there → here): {each}",
                stacklevel=2,
            )
    changes = list(header.get("changes", []))
    if found:
        changed = {each.path: [each.stored, each.asked] for each in found}
        changes.append({"iteration": iteration, "changed": changed})
    return Snapshot(tensors, header | {"changes": changes})


def _with_later_settings(identity: dict[str, Any]) -> dict[str, Any]:
    """What an older mim4dd stored, with the settings of the loop that it did not have yet."""
    defaults = {field.name: field.default for field in fields(LoopSettings)}
    settings = identity.get("settings")
    return identity | {"settings": defaults | (settings if isinstance(settings, dict) else {})}


def _may_change(difference: Difference) -> bool:
    if difference.path == _VERSION:
        return True
    return ".settings." in f".{difference.path}" and difference.name in MAY_CHANGE
