"""Search by Optuna: resumes, never looks at the test images, and judges by them in the end."""

import csv
import os
import sys

import pytest
from distill.sweep.test_sweep import GIVEN
from PIL import Image

from mim4dd.distill.config.commands import TaskSettings
from mim4dd.distill.experts.buffer import ExpertBuffer
from mim4dd.distill.sweep.grid import make_setting
from mim4dd.distill.sweep.job import Job, Result, held_out_data, run_job
from mim4dd.distill.sweep.search import search
from mim4dd.distill.sweep.space import Range
from mim4dd.distill.sweep.trial_store import TrialStore

SPACE = {"weight": Range(0.01, 1.0, log=True), "num_keys": Range(20, 60, log=False)}


def trials_of(out):
    with (out / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_trials_are_judged_by_held_out_training_images(tmp_path):
    data = TaskSettings().load_data()
    held = held_out_data(TaskSettings(), 0.2, 0)
    train = {image.numpy().tobytes() for image in data.image_train}
    assert all(image.numpy().tobytes() in train for image in held.image_test)
    assert len(held.image_train) + len(held.image_test) == len(data.image_train)
    # What a job is judged by: real images, whose accuracy differs with the images tested on.
    config = make_setting(GIVEN, {}, []).config
    for name, share in (("test", 0.0), ("held", 0.2)):
        run_job(Job(config, tmp_path / name, share, baseline=True))
    sizes = {"test": len(data.image_test), "held": len(held.image_test)}
    for name, size in sizes.items():
        for value in Result.read(tmp_path / name / "result.json").accuracy:
            assert value * size == pytest.approx(round(value * size), abs=1e-6)
    assert sizes["test"] != sizes["held"]


def test_a_search_continues_and_ends_with_the_test_images(tmp_path):
    pytest.importorskip("optuna")
    given = {**GIVEN, "num_keys": 40, "weight": 0.1}
    study = search(given, SPACE, tmp_path, trials=4, seeds=1, workers=2)
    tried = trials_of(tmp_path)
    assert len(tried) == 4
    assert (tried[0]["weight"], tried[0]["num_keys"]) == ("0.1", "40")  # the base
    assert all(0.01 <= float(trial["weight"]) <= 1 for trial in tried)
    assert all(20 <= int(trial["num_keys"]) <= 60 for trial in tried)
    best = max(tried, key=lambda trial: float(trial["held_out_accuracy"]))
    assert study.rows[0].setting == "base"
    assert study.rows[-1].options == {
        "weight": float(best["weight"]),
        "num_keys": int(best["num_keys"]),
    }
    assert "Best of 4 by held-out training images" in study.table
    assert stored_in(tmp_path) == [("COMPLETE", float(each["held_out_accuracy"])) for each in tried]
    experts = {
        ExpertBuffer(folder).headers[0]["data"]: folder
        for folder in [*tmp_path.glob("experts/*"), *tmp_path.glob("search/experts/*")]
    }
    assert experts.keys() == {"digits", "digits hold_out=0.2 seed=0"}
    with Image.open(tmp_path / "plots" / "search.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24)) > 20

    kept = {path: os.stat(path).st_mtime_ns for path in tmp_path.glob("**/result.json")}
    victim = next(path for path in kept if "search" in path.parts and "base" not in path.parts)
    victim.unlink()  # as if the search had been killed in that trial
    search(given, SPACE, tmp_path, trials=5, seeds=1, workers=2)
    again = trials_of(tmp_path)
    assert again[:4] == tried
    assert len(again) == 5
    assert len(stored_in(tmp_path)) == 5
    del kept[victim]
    assert {path: os.stat(path).st_mtime_ns for path in kept} == kept


def stored_in(out):
    """State and value of every trial, as Optuna and its dashboard read them."""
    import optuna

    (summary,) = optuna.get_all_study_summaries(f"sqlite:///{out}/optuna.db")
    assert summary.study_name == "weight=0.01..1.0:log num_keys=20..60 seeds=1"
    study = optuna.load_study(study_name=summary.study_name, storage=f"sqlite:///{out}/optuna.db")
    return [(trial.state.name, trial.value) for trial in study.trials]


def proposals(store, count, tell=True):
    found = []
    for position in range(count):
        number, options = store.proposal(position)
        assert number == position
        if tell:
            store.tell(number, -abs(options["weight"] - 0.3) - abs(options["num_keys"] - 40) / 100)
        found.append(options)
    return found


def test_proposals_outlive_what_made_them(tmp_path):
    pytest.importorskip("optuna")
    base = {"weight": 0.1, "num_keys": 40}
    whole, stopped = (TrialStore(tmp_path / name, SPACE, 1, 7) for name in ("whole", "stopped"))
    whole.begin(base)
    expected = proposals(whole, 14)
    assert expected[0] == base
    assert len({each["weight"] for each in expected}) == 14
    stopped.begin(base)
    assert proposals(stopped, 5) == expected[:5]
    # Killed with one proposal at work.
    assert stopped.proposal(5) == (5, expected[5])
    again = TrialStore(tmp_path / "stopped", SPACE, 1, 7)
    again.begin(base)
    assert proposals(again, 14) == expected
    again.tell(3, 1.0)  # what is noted stays
    assert [each.value for each in again._trials()] == [each.value for each in whole._trials()]
    other = TrialStore(tmp_path / "stopped", SPACE, 2, 7)  # with more seeds values are others
    assert other.proposal(0)[0] == 0
    assert len(again._trials()) == 14


def test_a_proposal_that_was_cut_off_is_left_out(tmp_path):
    pytest.importorskip("optuna")
    store = TrialStore(tmp_path / "s.db", SPACE, 1, 7)
    store._study.ask().suggest_float("weight", 0.01, 1.0, log=True)
    again = TrialStore(tmp_path / "s.db", SPACE, 1, 7)
    assert again._trials()[0].state.name == "FAIL"
    number, options = again.proposal(0)
    assert number == 1
    assert options.keys() == SPACE.keys()


def test_workers_at_once_try_different_settings(tmp_path):
    pytest.importorskip("optuna")
    found = proposals(TrialStore(tmp_path / "s.db", SPACE, 1, 7), 12, tell=False)
    assert len({tuple(each.values()) for each in found}) == 12


def test_another_file_is_no_storage(tmp_path):
    pytest.importorskip("optuna")
    (tmp_path / "optuna.db").write_bytes(b"no database, but of some length" * 50)
    with pytest.raises(ValueError, match=r"optuna\.db cannot be used as a storage of Optuna's"):
        TrialStore(tmp_path / "optuna.db", SPACE, 1, 7)


def test_an_option_without_effect_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vary: num_experts has no effect on any setting"):
        search({"method": "dm"}, {"num_experts": Range(1, 5, log=False)}, tmp_path, trials=1)
    assert not list(tmp_path.iterdir())


def test_a_search_without_optuna_names_the_cure(tmp_path, monkeypatch, capfd):
    from mim4dd.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    command = "mim4dd sweep --vary weight=0.1..1 --search 2"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit, match=r"optuna is missing; pip install 'mim4dd\[search\]'"):
        main()
    monkeypatch.setattr(sys, "argv", [*command.split(), "--one-at-a-time"])
    with pytest.raises(SystemExit, match="--search takes neither --one-at-a-time nor --against"):
        main()


@pytest.mark.parametrize("name", ["trials", "seeds", "workers"])
def test_counts_below_one_are_refused(name, tmp_path):
    counts = {"trials": 1, "seeds": 1, "workers": 1, name: 0}
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        search(GIVEN, SPACE, tmp_path, **counts)
