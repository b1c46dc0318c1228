"""Expert trajectories: copies, seeds, resume, and files that cannot be used."""

import dataclasses

import pytest
import torch
from tiny import TRAINING, make_data, make_experts, make_network

from mim4dd import flatten_parameters
from mim4dd.distill.evaluate import Evaluation, evaluate_full
from mim4dd.distill.experts import ExpertBuffer, ExpertTraining
from mim4dd.distill.storage import save_tensors


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


def test_experts_of_another_kind_are_not_mixed(tmp_path):
    data = make_data()
    make_experts(data, tmp_path)
    with pytest.raises(ValueError, match="experts of another kind: training"):
        make_experts(data, tmp_path, dataclasses.replace(TRAINING, lr_expert=0.1))
    with pytest.raises(ValueError, match="experts of another kind: network is tiny there"):
        make_experts(data, tmp_path, network_name="large")
    buffer = ExpertBuffer(tmp_path)
    buffer.require(network="tiny", data="bars")
    with pytest.raises(ValueError, match="experts must be of the data 'digits'"):
        buffer.require(data="digits")


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
        ({"dsa_strategy": "blur"}, "strategy must join"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        ExpertTraining(**change)


def test_evaluation_is_seeded_and_leaves_the_random_stream():
    data = make_data()
    evaluation = Evaluation(num_eval=2, eval_steps=20, eval_dsa_strategy="crop")
    state = torch.get_rng_state()
    first, second = (
        evaluate_full(lambda: make_network(data), 0.05, data, evaluation) for _ in range(2)
    )
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert first.mean == pytest.approx(sum(first.values) / 2)
    assert first.summary()["seeds"] == 2
