"""`mim4dd.distill.run`: any data, looked at while it trains, stopped, continued, evaluated."""

import dataclasses
import gc
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import outcome
from same_run import untimed
from tiny import make_data
from torch.utils.data import IterableDataset, TensorDataset

from mim4dd import distill
from mim4dd.distill.data import load_data
from mim4dd.distill.loop import Interrupted
from mim4dd.distill.networks import NETWORKS
from mim4dd.distill.runs import RunDirectory

TINY = {"width": 4, "depth": 1, "num_eval": 1, "eval_epochs": 2, "eval_every": 0}
SHORT = {"method": "dm", "batch_real": 4, "iterations": 4}
DM = TINY | SHORT | {"weight": 0.0}


def bars():
    """Pixels and classes of images, as a user has them."""
    data = make_data()
    return data.normalization.inverse(data.image_train), data.label_train


class Stream(IterableDataset):
    """It has an order alone, no length and no items."""

    def __iter__(self):
        return iter(())


def stop_at(iteration, number=signal.SIGINT):
    """A callback during which a signal arrives."""

    def stop(run):
        if run.iteration == iteration:
            os.kill(os.getpid(), number)

    return stop


@pytest.fixture
def command(capfd):
    """Run a command; return exit status, stdout and stderr."""
    return lambda *words: outcome(capfd, *words)


def test_importing_is_quick():
    """Nothing of the loop is imported before it is asked for."""
    code = (
        "import sys, mim4dd.distill as distill\n"
        "assert {'run', 'Run', 'open_run', 'train_experts'} <= set(dir(distill))\n"
        "before = {name for name in sys.modules if name.startswith('mim4dd.distill')}\n"
        "assert before == {'mim4dd.distill'}, before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'ruin'"):
        distill.ruin  # noqa: B018


def test_a_run_by_name_and_by_its_data_and_gone_on_with_by_the_command(tmp_path, command):
    """Python and the command line are one: same options, same files, same set bit for bit."""
    given = distill.run(load_data("digits"), **DM)
    with pytest.warns(UserWarning, match=f"or `mim4dd distill --resume {tmp_path}`$"):
        named = distill.run("digits", out=tmp_path, callback=stop_at(1), **DM)
    status, out, _ = command("distill", "--resume", tmp_path)
    assert (status, "test accuracy" in out, named.finished) == (0, True, True)
    run = distill.open_run(tmp_path)
    assert torch.equal(run.images, given.images)
    assert untimed(run.metrics) == untimed(given.metrics)
    assert run.config == given.config == distill.resolve(**DM)
    assert run.path == tmp_path
    assert repr(run) == (
        f"<Run of DM on digits: 1 image per class, finished after 4 iterations, in {tmp_path}>"
    )


def test_tensors_and_data_sets_are_data():
    images, labels = bars()
    samples = [
        {"img": image, "label": int(label)} for image, label in zip(images, labels, strict=True)
    ]
    expected = distill.run((images, labels), **DM)
    assert expected.config.data == "tensors"
    assert len(expected.data.label_test) == 7  # a fifth of 36
    for data in ([images, labels], TensorDataset(images, labels), samples):
        assert torch.equal(distill.run(data, **DM).images, expected.images)
    whitened = distill.run((images, labels), **DM, zca=True)
    assert whitened.data.zca
    assert not torch.equal(whitened.images, expected.images)


def test_the_add_on_and_its_options_in_one():
    together = distill.run("digits", add_on=distill.MIM4DD(weight=0.5, num_keys=20), **TINY | SHORT)
    flat = distill.run("digits", weight=0.5, num_keys=20, **TINY | SHORT)
    assert together.config == flat.config
    assert torch.equal(together.images, flat.images)
    with pytest.raises(ValueError, match="weight must be given once: in add_on, or beside it"):
        distill.resolve(method="dm", add_on=distill.MIM4DD(weight=0.5), weight=0.1)
    with pytest.raises(ValueError, match="unknown options: wait"):
        distill.resolve(method="dm", add_on=distill.MIM4DD(wait=0.5))


def test_given_data_say_how_they_were_made():
    whitened = load_data("digits", zca=True)
    assert distill.run(whitened, **DM).config.zca
    with pytest.raises(ValueError, match=r"zca must be True, as digits was made, or left out"):
        distill.run(whitened, **DM, zca=False)
    drawn = dataclasses.replace(make_data(), name="shapes")
    assert distill.run(drawn, **DM).config.image_size == 8  # which is how a command loads it
    rows = dataclasses.replace(load_data("wine"), name="shapes")
    few = {"method": "dm", "network": "mlp", "eval_dsa_strategy": "none", "eval_every": 0}
    assert distill.run(rows, **few, dsa_strategy="none", iterations=1).images.shape == (3, 13)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (torch.rand(3), {}, ValueError, "samples must be"),
        ({"train": []}, {}, TypeError, "data must be a name, a folder, .* got dict"),
        (Stream(), {}, TypeError, "map-style .* got Stream"),
        ("nowhere", {}, ValueError, "data must be one of .* got 'nowhere'"),
        ([], {"image_size": 8}, ValueError, "image_size is for data by name or folder, got 8"),
        ("digits", {"iteration": 1}, ValueError, "unknown options: iteration"),
        ("digits", {"syn_steps": 1}, ValueError, "syn_steps has no effect on method 'dm'"),
        ("digits", {"out": "run", "ipc": 0}, ValueError, "ipc must be at least 1"),
        ("digits", {"out": "run", "ipc": 999}, ValueError, "ipc must be at most the size"),
    ],
)
def test_what_cannot_be_distilled_is_refused_and_leaves_nothing(
    data, options, error, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        distill.run(data, **DM, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_callback_sees_the_run_as_it_is(tmp_path):
    seen = []

    def look(run):
        assert run.synthetic is run.synthetic  # made once
        assert (run.iteration, run.finished) == (len(seen) + 1, False)
        assert run.metrics == RunDirectory(tmp_path).read_metrics()
        assert f", {run.iteration} of 4 iterations" in repr(run)
        seen.append(run.images)
        with pytest.raises(RuntimeError, match="it is training"):
            run.train()

    run = distill.run("digits", out=tmp_path, callback=look, **DM)
    assert len(seen) == 4
    assert torch.equal(seen[-1], run.images)
    assert not torch.equal(seen[0], seen[1])
    assert run.syn_lr == torch.tensor(run.metrics[-1]["syn_lr"])


@pytest.mark.parametrize("in_directory", [False, True])
def test_after_control_c_the_run_is_there_and_goes_on(in_directory, tmp_path):
    """The same bits as if it had never stopped."""
    data = bars()
    whole = distill.run(data, **DM)
    out = tmp_path / "run" if in_directory else None
    handler = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match="stopped before iteration 2 of 4: train") as caught:
        run = distill.run(data, out=out, callback=stop_at(2), **DM)
    (warning,) = caught
    assert warning.filename == __file__  # of the call, not of a line of ours
    assert ("same call" in str(warning.message)) == in_directory
    assert signal.getsignal(signal.SIGINT) is handler
    assert (run.iteration, run.finished, len(run.metrics)) == (2, False, 2)
    assert not torch.equal(run.images, whole.images)
    if in_directory:
        again = distill.run(data, out=out, **DM)
        assert torch.equal(again.images, whole.images)
        return
    run.callback = stop_at(3)
    with pytest.warns(UserWarning, match="stopped before iteration 3") as caught:
        run.train()
    assert caught[0].filename == __file__
    run.train()
    assert torch.equal(run.images, whole.images)
    assert untimed(run.metrics) == untimed(whole.metrics)


def test_a_finished_run_goes_on_past_its_last_iteration():
    data = bars()
    run = distill.run(data, **DM)
    run.train(iterations=6)
    assert (run.iteration, run.config.iterations, len(run.metrics)) == (6, 6, 7)
    assert torch.equal(run.images, distill.run(data, **DM | {"iterations": 6}).images)
    with pytest.raises(ValueError, match="is at iteration 6, beyond iterations 5"):
        run.train(iterations=5)
    assert run.finished
    assert run.config.iterations == 6


def test_sigterm_ends_the_program_and_errors_of_a_callback_are_raised(tmp_path):
    with pytest.raises(Interrupted, match="stopped before iteration 1 of 4"):
        distill.run("digits", out=tmp_path / "run", callback=stop_at(1, signal.SIGTERM), **DM)
    assert distill.open_run(tmp_path / "run").iteration == 1

    def fail(run):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        distill.run("digits", callback=fail, **DM)


def test_another_run_in_the_directory_is_refused(tmp_path):
    run = distill.run("digits", out=tmp_path, **DM)
    with pytest.raises(ValueError, match="holds a run with another ipc: 1 → 2"):
        distill.run("digits", out=tmp_path, **DM, ipc=2)
    digits = load_data("digits")
    other = dataclasses.replace(digits, image_train=-digits.image_train)
    with pytest.raises(ValueError, match=r"holds another run, which differs in .*data\.train"):
        distill.run(other, out=tmp_path, **DM)
    assert distill.run("digits", out=tmp_path, **DM).metrics == run.metrics


def test_temporary_files_live_as_long_as_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = distill.run("digits", **DM)
    (folder,) = tmp_path.iterdir()
    assert folder == run.path
    if (child := os.fork()) == 0:  # as of a DataLoader's worker
        del run
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert folder.exists()
    del run
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_the_last_good_state_is_kept_even_of_a_temporary_run(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(FloatingPointError, match="is kept in"):
        distill.run("digits", **DM | {"lr_img": 1e30, "norm": "none"})
    gc.collect()
    (kept,) = tmp_path.iterdir()
    assert distill.open_run(kept).images.isfinite().all()


def test_an_opened_run_takes_a_callback(tmp_path):
    with pytest.warns(UserWarning, match="stopped before iteration 2"):
        distill.run("digits", out=tmp_path, callback=stop_at(2), **DM)
    seen = []
    run = distill.open_run(tmp_path, callback=lambda run: seen.append(run.iteration))
    assert seen == []
    run.train()
    assert seen == [3, 4]


def test_evaluate_is_the_command_on_the_run(tmp_path, command):
    run = distill.run("digits", out=tmp_path, **DM)
    table = run.evaluate(networks=["convnet", "mlp"], seeds=2)
    status, out, _ = command("evaluate", tmp_path, "--networks", "convnet,mlp", "--num-eval", 2)
    assert (status, out.startswith(f"{table}\nDD-Ranking")) == (0, True)
    assert [list(table), list(table[str(tmp_path)])] == [
        [str(tmp_path), "1 random real images per class", "whole training set"],
        ["convnet", "mlp"],
    ]
    assert len(table["whole training set"]["mlp"].values) == 2
    own = run.evaluate(baselines=False)
    assert list(own) == [str(tmp_path)]
    assert list(own[str(tmp_path)]) == ["convnet"]
    assert len(own[str(tmp_path)]["convnet"].values) == 1
    # The set tells the most networks that it was judged by, here and in its file.
    for synthetic in (run.synthetic, distill.open_run(tmp_path).synthetic):
        told = {each.network: each.values for each in synthetic.provenance.accuracies}
        assert told == {name: table[str(tmp_path)][name].values for name in ("convnet", "mlp")}
    for wrong in (["vit"], [], ["mlp", "mlp"]):
        with pytest.raises(ValueError, match=f"networks must be different ones of {min(NETWORKS)}"):
            run.evaluate(wrong)


def test_a_run_is_evaluated_while_it_trains_and_trains_on_as_it_would():
    tables = []
    data = bars()
    run = distill.run(data, callback=lambda run: tables.append(run.evaluate()), **DM)
    assert list(tables[1]) == [
        "distilled, 2 of 4 iterations",
        "1 random real images per class",
        "whole training set",
    ]
    told = run.synthetic.provenance.accuracies
    assert told == ()  # what was judged is not the set any more
    assert torch.equal(run.images, distill.run(data, **DM).images)


def test_commands_on_a_run_of_tensors_say_what_they_miss(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = bars()
    with pytest.warns(UserWarning, match=r"distill\.run$"):
        distill.run(data, out="run", callback=stop_at(3), **DM)
    missing = (
        "run is of data 'tensors', which is neither a known name nor a folder here. Data that "
        "were given in Python must be given again, by mim4dd.distill.open_run('run', data)"
    )
    for words in ("evaluate run", "distill --resume run", "show --features run"):
        status, _, err = command(*words.split())
        assert (status, err.splitlines()[-1]) == (1, f"mim4dd: {missing}")
    status, out, _ = command("show", "run")
    assert status == 0
    assert Path("run/pictures/synthetic.png").exists()
    assert out.splitlines()[-1].endswith(missing)
    without = distill.open_run("run")
    assert (without.iteration, without.images.shape) == (3, (3, 1, 8, 8))
    for ask in (without.evaluate, without.train):
        with pytest.raises(ValueError, match=re.escape(missing)):
            ask()
    run = distill.open_run("run", data)
    assert "run, 3 of 4 iterations" in run.evaluate()
    run.train()
    assert torch.equal(run.images, distill.run(data, **DM).images)
    with pytest.raises(ValueError, match="data must be what the set was made of"):
        distill.open_run("run", "digits").evaluate()


def test_a_run_that_has_not_begun_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        distill.open_run(tmp_path)
    RunDirectory(tmp_path).create(distill.resolve(**DM).options())
    (tmp_path / "initial.safetensors").touch()  # what is written first, as it is killed
    run = distill.open_run(tmp_path)
    assert (run.iteration, run.metrics) == (0, [])
    assert "0 of 4 iterations" in repr(run)
    with pytest.raises(ValueError, match="no checkpoint yet"):
        run.images  # noqa: B018
    run.train()
    assert run.iteration == 4


def test_experts_and_mtt_on_data_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = bars()
    mtt = TINY | {"method": "mtt", "syn_steps": 2, "max_start_epoch": 2, "iterations": 2}
    mtt |= {"num_keys": 9}
    with pytest.raises(ValueError, match=r"in Python mim4dd\.distill\.train_experts\(data, out\)"):
        distill.run((images, labels), **mtt)
    assert list(tmp_path.iterdir()) == []
    few = {"num_experts": 2, "train_epochs": 3, "width": 4, "depth": 1}
    experts = distill.train_experts((images, labels), "mine", **few)
    assert (len(experts), experts.num_epochs) == (2, 3)
    run = distill.run((images, labels), experts="mine", **mtt)
    assert "MTT + MIM4DD on tensors" in repr(run)
    assert "mi_lower_bound" in run.metrics[0]
    with pytest.raises(ValueError, match="must be of the network and the data to distil for"):
        distill.run((images + images.flip(2), labels), experts="mine", **mtt)


def test_several_processes_do_not_write_one_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"distill\.run runs as one process"):
        distill.run("digits", out=tmp_path, **DM)
