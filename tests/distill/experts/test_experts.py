"""Expert trajectories: copies, seeds, resume, and files that cannot be used."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from sgd_steps import acting_at
from tiny import TRAINING, make_data, make_experts, make_network

from mim4dd import flatten_parameters
from mim4dd.distill.evaluation.recipe import Evaluation, evaluate_full
from mim4dd.distill.experts import ExpertBuffer, ExpertTraining
from mim4dd.distill.experts.buffer import (
    expert_header,
    expert_path,
    parameter_shapes,
    save_expert,
)
from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.training import kept


def test_a_stored_epoch_is_a_copy_of_its_moment(tmp_path):
    """Not a view of live weights, which makes all epochs equal to the last one."""
    data = make_data()
    buffer = make_experts(data, tmp_path)
    assert (len(buffer), buffer.num_epochs) == (2, 4)
    epochs = torch.stack([buffer.segment(0, epoch, 0)[0] for epoch in range(5)])
    assert len(epochs.unique(dim=0)) == 5
    # The first is the initial weights, and the segments are what was stored.
    with torch.random.fork_rng():
        torch.manual_seed(TRAINING.seed)
        assert torch.equal(epochs[0], flatten_parameters(make_network(data)))
    start, target = buffer.segment(0, 1, 2)
    assert torch.equal(start, epochs[1])
    assert torch.equal(target, epochs[3])


def test_experts_learn_and_differ(tmp_path):
    data = make_data()
    buffer = make_experts(data, tmp_path)
    assert all(header["accuracy"] > 0.6 for header in buffer.headers)
    assert not torch.equal(buffer.segment(0, 4, 0)[0], buffer.segment(1, 4, 0)[0])
    assert buffer.seconds > 0


def test_interrupted_training_continues_with_the_same_result(tmp_path):
    data = make_data()
    whole = make_experts(data, tmp_path / "whole")
    make_experts(data, tmp_path / "parts", dataclasses.replace(TRAINING, num_experts=1))
    state = torch.get_rng_state()
    parts = make_experts(data, tmp_path / "parts")
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random stream is left alone
    for expert in range(2):
        assert torch.equal(whole.segment(expert, 4, 0)[0], parts.segment(expert, 4, 0)[0])


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 12, 13])
def test_a_stop_amid_an_expert_costs_no_more_than_the_last_write(stop, tmp_path, monkeypatch):
    """An expert is four epochs of three steps."""
    data, folder = make_data(), tmp_path / "parts"
    monkeypatch.setattr(kept, "_SECONDS", 0.0)
    whole = make_experts(data, tmp_path / "whole")

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.SGD, "step", acting_at(stop, interrupt)[0])
        with pytest.raises(KeyboardInterrupt):
            make_experts(data, folder)
    noted, calls = acting_at(0, interrupt)
    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    parts = make_experts(data, folder)
    assert len(calls) == 2 * 4 * 3 - (stop - 1)
    for expert in range(2):
        assert torch.equal(whole.trajectory(expert), parts.trajectory(expert))
    assert names_in(folder) == names_in(tmp_path / "whole")
    assert len(names_in(folder)) == 2


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_kill_left_beside_a_finished_expert_goes(tmp_path):
    """It is there until the expert is written, and a kill can come between."""
    data, left = make_data(), tmp_path / "training_0001.safetensors"
    make_experts(data, tmp_path)
    expert = expert_path(tmp_path, 1)
    left.write_bytes(b"whatever it is")
    before = expert.stat().st_mtime_ns
    make_experts(data, tmp_path)
    assert not left.exists()
    assert expert.stat().st_mtime_ns == before


@pytest.mark.parametrize("change", ["another training", "another trajectory"])
def test_a_stopped_expert_of_another_kind_is_refused(change, tmp_path, monkeypatch):
    data, path = make_data(), tmp_path / "training_0000.safetensors"
    monkeypatch.setattr(kept, "_SECONDS", 0.0)
    monkeypatch.setattr("mim4dd.distill.experts.train.accuracy", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_experts(data, tmp_path)
    if change == "another training":
        training, message = dataclasses.replace(TRAINING, lr_expert=0.1), "another training"
    else:
        tensors, header = load_tensors(path)
        short = {"beside.trajectory": tensors["beside.trajectory"][:2].clone()}
        save_tensors(path, tensors | short, header)
        training, message = TRAINING, "the trajectory up to its step"
    with pytest.raises(ValueError, match=rf"training_0000\.safetensors .*{message}"):
        make_experts(data, tmp_path, training)


def test_workers_train_what_one_process_trains(tmp_path):
    """Bit for bit with one thread each; what is there already is kept."""
    data = make_data()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        three = dataclasses.replace(TRAINING, num_experts=3, dsa_strategy="crop_scale")
        whole = make_experts(data, tmp_path / "whole", three)
        make_experts(data, tmp_path / "parts", dataclasses.replace(three, num_experts=1))
        kept = (tmp_path / "parts" / "expert_0000.safetensors").stat().st_mtime_ns
        parts = make_experts(data, tmp_path / "parts", three, workers=2, devices=["cpu", "cpu:0"])
    finally:
        torch.set_num_threads(threads)
    for expert in range(3):
        assert torch.equal(whole.trajectory(expert), parts.trajectory(expert))
    assert (tmp_path / "parts" / "expert_0000.safetensors").stat().st_mtime_ns == kept


def test_momentum_weight_decay_and_decay_are_those_of_sgd(tmp_path):
    data = make_data()
    training = ExpertTraining(
        num_experts=1,
        train_epochs=6,
        lr_expert=0.1,
        batch_train=len(data.image_train),  # so that the order of the images does not matter
        momentum=0.9,
        weight_decay=0.01,
        decay=True,
    )
    buffer = make_experts(data, tmp_path, training)
    with torch.random.fork_rng():
        torch.manual_seed(training.seed)
        network = make_network(data)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for epoch in range(6):
        # MTT's buffer.py makes it again once the epoch numbered train_epochs // 2 + 1 has ended.
        if epoch == 6 // 2 + 2:
            optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=0.01)
        optimizer.zero_grad()
        F.cross_entropy(network(data.image_train), data.label_train).backward()
        optimizer.step()
        expected = flatten_parameters(network)
        torch.testing.assert_close(buffer.segment(0, epoch + 1, 0)[0], expected)


def test_experts_fit_a_network_whose_every_parameter_has_their_shape(tmp_path):
    wide, tall = (torch.nn.Linear(*size, bias=False) for size in ((4, 6), (6, 4)))
    trajectory = torch.rand(3, 24)
    header = expert_header("linear", "none")
    save_expert(expert_path(tmp_path, 0), trajectory, parameter_shapes(wide), header)
    buffer = ExpertBuffer(tmp_path)
    buffer.require_parameters_of(wide)
    with pytest.raises(
        ValueError,
        match=r"the network to distil for: parameter 0 is \(6, 4\), and \(4, 6\) in the network, "
        "which calls it weight",
    ):
        buffer.require_parameters_of(tall)
    with pytest.raises(ValueError, match="there are 1 parameters, and 2 in the network"):
        buffer.require_parameters_of(torch.nn.Linear(4, 6))
    save_expert(expert_path(tmp_path, 1), trajectory, parameter_shapes(tall), header)
    with pytest.raises(ValueError, match="must be of networks with equal parameters"):
        ExpertBuffer(tmp_path)
    save_expert(expert_path(tmp_path, 0), trajectory, [(4, 5)], header)
    with pytest.raises(ValueError, match="do not have the parameters that they list"):
        ExpertBuffer(tmp_path, 1)


def test_experts_of_another_kind_are_not_mixed(tmp_path):
    data = make_data()
    make_experts(data, tmp_path)
    with pytest.raises(ValueError, match=r"another kind: training\.lr_expert is 0\.05 there"):
        make_experts(data, tmp_path, dataclasses.replace(TRAINING, lr_expert=0.1))
    with pytest.raises(ValueError, match="experts of another kind: network is tiny there"):
        make_experts(data, tmp_path, network_name="large")
    buffer = ExpertBuffer(tmp_path)
    buffer.require(network="tiny", data="bars")
    with pytest.raises(ValueError, match="experts must be of the data 'digits'"):
        buffer.require(data="digits")


def test_experts_that_do_not_say_what_they_are_of_are_not_added_to(tmp_path):
    data = make_data()
    make_experts(data, tmp_path)
    for path in tmp_path.glob("expert_*.safetensors"):  # as before the headers had a task
        tensors, header = load_tensors(path)
        del header["task"]
        save_tensors(path, tensors, header)
    message = r"do not say what they were trained on: train them again, or choose another folder$"
    with pytest.raises(ValueError, match=message):
        make_experts(data, tmp_path)
    with pytest.raises(
        ValueError, match=r"another kind: network is tiny there.*\(also task \(not stored\)"
    ):
        make_experts(data, tmp_path, network_name="large")


def test_files_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds none; `mim4dd experts` trains them"):
        ExpertBuffer(tmp_path)
    make_experts(make_data(), tmp_path)
    second = tmp_path / "expert_0001.safetensors"
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"expert_0001\.safetensors is truncated"):
        ExpertBuffer(tmp_path)
    save_tensors(second, {"weights": torch.zeros(3)}, {})
    with pytest.raises(ValueError, match=r"expert_0001\.safetensors does not hold an expert"):
        ExpertBuffer(tmp_path)


def test_a_diverging_expert_is_not_stored(tmp_path):
    training = dataclasses.replace(TRAINING, lr_expert=1e30)
    with pytest.raises(FloatingPointError, match="expert 0 diverged in epoch 1: lower lr_expert"):
        make_experts(make_data(), tmp_path, training)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1"),
        ({"lr_expert": 0.0}, "lr_expert must be positive"),
        ({"momentum": 1.0}, "momentum must be below 1, got 1.0"),
        ({"momentum": -0.1}, "momentum must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"dsa_strategy": "blur"}, "strategy must join"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        ExpertTraining(**change)


def test_evaluation_is_seeded_and_leaves_the_random_stream():
    data = make_data()
    evaluation = Evaluation(num_eval=2, eval_epochs=20, eval_dsa_strategy="crop")
    state = torch.get_rng_state()
    first, second = (
        evaluate_full(lambda: make_network(data), 1, 0.05, data, evaluation) for _ in range(2)
    )
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert first.mean == pytest.approx(sum(first.values) / 2)
    assert first.summary()["seeds"] == 2
