"""Copies of the set that a run keeps as it goes: whole sets, the same after a stop."""

import pytest
import torch
from command_line import outcome
from same_run import untimed
from tiny import make_data

from mim4dd import distill
from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.runs import RunDirectory, SyntheticSet

SMALL = {"width": 4, "depth": 1, "eval_every": 0, "num_eval": 1, "eval_epochs": 1}
DM = SMALL | {"method": "dm", "weight": 0.0, "batch_real": 4}


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture
def mim4dd(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    return lambda words: outcome(capfd, *words.split())


def test_a_copy_is_the_set_as_the_run_was(data, tmp_path):
    seen = {}
    run = distill.run(
        data,
        out=tmp_path,
        iterations=5,
        keep_every=2,
        callback=lambda run: seen.setdefault(run.iteration, run.synthetic),
        **DM,
    )
    kept = RunDirectory(tmp_path)
    assert kept.kept_sets() == [2, 4]
    for iteration in (2, 4):
        copy, reached = kept.load_set(iteration)
        assert reached == iteration
        assert torch.equal(copy.image_syn, seen[iteration].image_syn)
        assert copy.provenance == seen[iteration].provenance
        copy.require_data(run.data)
    with pytest.raises(ValueError, match="a checkpoint or a set of, 0, 2, 4, 5, got 3"):
        kept.load_set(3)
    assert torch.equal(kept.load_set(5)[0].image_syn, run.images)


def test_going_back_drops_later_copies_and_a_change_keeps_earlier_ones(data, tmp_path):
    options = DM | {"checkpoint_every": 3}
    run = distill.run(data, out=tmp_path / "run", iterations=6, keep_every=2, **options)
    last = RunDirectory(tmp_path / "run").kept_set(6).read_bytes()
    run.train(iterations=8)
    kept = RunDirectory(tmp_path / "run")
    assert kept.kept_sets() == [2, 4, 6, 8]
    assert kept.kept_set(6).read_bytes() == last
    kept.rewind(3)
    assert kept.kept_sets() == [2]
    with pytest.raises(ValueError, match="keep_every must be at least 0"):
        distill.resolve(method="dm", keep_every=-1)


def test_commands_take_a_copy_by_its_file_and_by_its_iteration(mim4dd, tmp_path):
    words = "--method dm --weight 0 --batch-real 4 --width 4 --depth 1 --num-eval 1 --eval-epochs 1"
    assert mim4dd(f"distill {words} --iterations 4 --keep-every 3 --out run")[0] == 0
    file = "run/sets/00000003.safetensors"
    by_file = mim4dd(f"evaluate {file} --no-baselines")
    by_iteration = mim4dd("evaluate run --iteration 3 --no-baselines")
    assert by_file[0] == by_iteration[0] == 0
    assert by_file[1].split()[1:] == by_iteration[1].split()[5:]  # after the names
    assert mim4dd(f"show {file}") == (0, "run/sets/00000003.png\n", "")
    status, out, _ = mim4dd("show run --iteration 3 --no-features")
    assert (status, "run/pictures/synthetic.png" in out) == (0, True)
    status, _, err = mim4dd(f"show run {file} --html page.html")
    assert (status, err) == (1, f"mim4dd: --html is of runs, {file} is a set in a file")
    torch.save(torch.rand(2), "set.pt")
    status, _, err = mim4dd("show set.pt")
    assert status == 1
    assert "set.pt must be a run, or a set of mim4dd in a file" in err
    SyntheticSet.load(file).export("exported")
    assert mim4dd("show exported") == (0, "exported.png\n", "")


def test_a_copy_has_the_labels_of_a_result(data, tmp_path):
    options = SMALL | {"method": "sre2l", "weight": 0.0, "norm": "batch", "squeeze_epochs": 1}
    run = distill.run(data, out=tmp_path, iterations=2, keep_every=2, **options)
    copy = SyntheticSet.load(RunDirectory(tmp_path).kept_set(2))
    assert torch.equal(copy.label_syn, run.labels)
    assert copy.label_syn.dim() == 2


def test_a_run_of_an_older_version_goes_on(data, tmp_path):
    """Its checkpoint does not know of settings that came later."""
    run = distill.run(data, out=tmp_path, iterations=2, **DM)
    files = RunDirectory(tmp_path)
    tensors, header = load_tensors(files.checkpoint)
    del header["identity"]["settings"]["keep_every"]
    save_tensors(files.checkpoint, tensors, header)
    run.train(iterations=4)
    (changed,) = files.load_checkpoint()[1]["changes"]
    assert changed["changed"] == {"settings.iterations": [2, 4]}
    whole = distill.run(data, out=tmp_path / "whole", iterations=4, **DM)
    assert torch.equal(run.images, whole.images)
    assert untimed(run.metrics)[-2:] == untimed(whole.metrics)[-2:]
