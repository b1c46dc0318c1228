"""What a search proposed and found, in a storage of Optuna's."""

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mim4dd.distill.sweep.grid import shown
from mim4dd.distill.sweep.space import Range, Space

__all__ = ["TrialStore"]

_LONGEST_NAME = 400  # of 512 that a database takes


class TrialStore:
    """A study in an SQLite file, which ``optuna-dashboard sqlite:///FILE`` shows.

    What is proposed is on disk before it is tried. A study is of one space and number of seeds;
    others lie beside it in the file.

    Args:
        path: The file.
        space: What is searched.
        seeds: Distillations of each setting, whose mean is told.
        seed: Of the proposals. Each has a stream of its own, so that a search which was stopped
            draws what it would have drawn.

    Raises:
        ModuleNotFoundError: If Optuna is missing.
        ValueError: If the file is no storage of Optuna's.
    """

    def __init__(self, path: Path, space: Space, seeds: int, seed: int) -> None:
        import optuna
        import sqlalchemy

        self._space, self._seed = space, seed
        url = sqlalchemy.URL.create("sqlite", database=str(path.absolute()))
        with _quiet(), _naming(path):
            self._study = optuna.create_study(
                storage=url.render_as_string(),
                study_name=_name(space, seeds),
                direction="maximize",
                load_if_exists=True,
            )
        self._usable = self._whole()

    def begin(self, options: Mapping[str, Any]) -> None:
        """Have these options tried first, where the space holds them and nothing was tried."""
        if not self._usable and all(options[name] in self._space[name] for name in self._space):
            first = {name: options[name] for name in self._space}
            self._study.enqueue_trial(first, skip_if_exists=True)

    def proposal(self, position: int) -> tuple[int, dict[str, Any]]:
        """Number and options of a proposal: the one that is noted, or a new one."""
        if position < len(self._usable):
            number = self._usable[position]
            return number, self._options(self._trials()[number].params)
        import optuna

        entropy = np.random.SeedSequence((self._seed, position)).generate_state(1)[0]
        with _quiet():
            # Proposals that are being tried count as bad, or all workers would try the same.
            self._study.sampler = optuna.samplers.TPESampler(seed=int(entropy), constant_liar=True)
        trial = self._study.ask()
        params = {name: _suggest(trial, name, values) for name, values in self._space.items()}
        self._usable.append(trial.number)
        return trial.number, self._options(params)

    def tell(self, number: int, accuracy: float | None) -> None:
        """Note what was found, None where a distillation diverged; what is noted stays."""
        from optuna.trial import TrialState

        if self._trials()[number].state.is_finished():
            return
        if accuracy is None:
            self._study.tell(number, state=TrialState.FAIL)
        else:
            self._study.tell(number, accuracy)

    def _trials(self) -> list[Any]:
        return self._study.get_trials(deepcopy=False)

    def _whole(self) -> list[int]:
        """Numbers of the proposals with all their options; one that a kill cut off is given up."""
        found = []
        for trial in self._trials():
            if trial.params.keys() == self._space.keys():
                found.append(trial.number)
            elif trial.state.name == "RUNNING":
                self.tell(trial.number, None)
        return found

    def _options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _rounded(params[name], self._space[name]) for name in self._space}


def _suggest(trial: Any, name: str, values: Range | list[Any]) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    if isinstance(values.low, int):
        return trial.suggest_int(name, values.low, values.high, log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)


def _rounded(value: Any, values: Range | list[Any]) -> Any:
    """To be read, and to name a folder."""
    is_float = isinstance(values, Range) and not isinstance(values.low, int)
    return float(f"{value:.4g}") if is_float else value


def _name(space: Space, seeds: int) -> str:
    parts = [
        f"{name}={','.join(map(shown, values)) if isinstance(values, list) else values}"
        for name, values in space.items()
    ]
    name = f"{' '.join(parts)} seeds={seeds}"
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]} {hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's word on every study: the progress bar tells the same."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    import sqlalchemy.exc

    try:
        yield
    except sqlalchemy.exc.DatabaseError as error:
        raise ValueError(
            f"{path} cannot be used as a storage of Optuna's ({error.orig}); without it the search "
            "proposes anew, and takes the distillations that are there"
        ) from error
