"""MTT's expert files: theirs are read, ours are read by code that does what theirs does."""

import dataclasses
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from tiny import TRAINING, make_data, make_experts, make_network
from torch import nn
from torch.func import functional_call

from mim4dd.distill.data import from_tensors
from mim4dd.distill.experts import ExpertBuffer
from mim4dd.distill.experts.replay_buffer import (
    export_replay_buffers,
    import_replay_buffers,
    read_replay_buffer,
)
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.mtt import MTT, MTTSettings
from mim4dd.distill.networks import ConvNet

SETTINGS = MTTSettings(syn_steps=3, expert_epochs=2, max_start_epoch=1)


def snapshot(network):
    """As MTT's buffer.py stores it where it works: on a GPU, whose .cpu() copies."""
    return [p.detach().cpu().clone() for p in network.parameters()]


def train_as_mtt(data, store=snapshot, epochs=3, make_network=make_network):
    network = make_network(data)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    timestamps = [store(network)]
    for _ in range(epochs):
        optimizer.zero_grad()
        F.cross_entropy(network(data.image_train), data.label_train).backward()
        optimizer.step()
        timestamps.append(store(network))
    return timestamps


def write_as_mtt(folder, trajectories, per_file=2, **options):
    folder.mkdir(exist_ok=True)
    for number, at in enumerate(range(0, len(trajectories), per_file)):
        path = folder / f"replay_buffer_{number}.pt"
        torch.save(trajectories[at : at + per_file], path, **options)
    return folder


def flat(timestamp):
    """As MTT's distill.py makes theta of a timestamp."""
    return torch.cat([p.data.to("cpu").reshape(-1) for p in timestamp], 0)


def load_as_mtt(folder):
    """As MTT's distill.py does with --load_all."""
    buffer, number = [], 0
    while os.path.exists(os.path.join(folder, f"replay_buffer_{number}.pt")):
        buffer = buffer + torch.load(os.path.join(folder, f"replay_buffer_{number}.pt"))
        number += 1
    return buffer


def loss_as_mtt(network, trajectory, images, labels, syn_lr, start=0):
    """MTT's loss, its graph kept through all steps; gradients of images and step size."""
    names = [name for name, _ in network.named_parameters()]
    theta_0, target = flat(trajectory[start]), flat(trajectory[start + SETTINGS.expert_epochs])
    theta = theta_0.clone().requires_grad_()
    sizes = [p.numel() for p in network.parameters()]
    for _ in range(SETTINGS.syn_steps):
        parts = zip(theta.split(sizes), network.parameters(), strict=True)
        values = dict(zip(names, (part.view_as(p) for part, p in parts), strict=True))
        loss = F.cross_entropy(functional_call(network, values, images), labels)
        theta = theta - syn_lr * torch.autograd.grad(loss, theta, create_graph=True)[0]
    value = F.mse_loss(theta, target, reduction="sum") / F.mse_loss(
        theta_0, target, reduction="sum"
    )
    return value, *torch.autograd.grad(value, [images, syn_lr])


def convert(source, folder, data, name="tiny"):
    return import_replay_buffers(source, folder, make_network(data), name, data.name, data=data)


@pytest.mark.parametrize("zipped", [True, False])  # False: as torch before 1.6 wrote
def test_a_buffer_of_mtts_is_read(zipped, tmp_path):
    data = make_data()
    trajectories = [train_as_mtt(data) for _ in range(3)]
    source = write_as_mtt(tmp_path / "theirs", trajectories, _use_new_zipfile_serialization=zipped)
    experts = convert(source, tmp_path / "ours", data)
    assert (len(experts), experts.num_epochs) == (3, 3)
    for expert, trajectory in enumerate(trajectories):
        expected = torch.stack([flat(timestamp) for timestamp in trajectory])
        assert torch.equal(experts.trajectory(expert), expected)
    # It is used like one of ours, and says what is not known of it.
    experts.require(network="tiny", data="bars")
    MTT(make_network(data), experts, SETTINGS)
    assert experts.seconds is None
    assert experts.headers[2]["source"] == "replay_buffer_1.pt, trajectory 0"
    with pytest.raises(
        ValueError, match=r"ours.* do not say what they were trained on: train them"
    ):
        make_experts(data, tmp_path / "ours")
    make_experts(data, tmp_path / "trained")
    with pytest.raises(
        ValueError, match=r"say what they were trained on, and imported ones do not"
    ):
        convert(source, tmp_path / "trained", data)


def test_ours_is_read_by_mtt(tmp_path):
    data = make_data()
    make_experts(data, tmp_path / "ours", dataclasses.replace(TRAINING, num_experts=12))
    experts = ExpertBuffer(tmp_path / "ours")
    paths = export_replay_buffers(tmp_path / "ours", tmp_path / "theirs")
    assert [path.name for path in paths] == ["replay_buffer_0.pt", "replay_buffer_1.pt"]
    assert [len(torch.load(path)) for path in paths] == [10, 2]
    buffer = load_as_mtt(tmp_path / "theirs")
    network = make_network(data)
    for expert, trajectory in enumerate(buffer):
        assert len(trajectory) == 5
        for epoch, timestamp in enumerate(trajectory):
            assert [p.shape for p in timestamp] == [p.shape for p in network.parameters()]
            assert torch.equal(flat(timestamp), experts.segment(expert, epoch, 0)[0])
    # There and back again: the same bits, and so the same training.
    again = convert(tmp_path / "theirs", tmp_path / "back", data)
    for expert in range(12):
        assert torch.equal(again.trajectory(expert), experts.trajectory(expert))


def test_an_outer_step_on_ours_is_mtts_on_theirs(tmp_path):
    """In float64, MTT's own way: all steps in one graph, on what its loader makes of our export."""
    data = make_data()
    network = make_network(data).double()
    trajectory = [[p.double() for p in step] for step in train_as_mtt(data)]
    source = write_as_mtt(tmp_path / "theirs", [trajectory])
    experts = import_replay_buffers(source, tmp_path / "ours", network, "tiny", "bars", data=data)
    export_replay_buffers(tmp_path / "ours", tmp_path / "back")
    (buffer,) = load_as_mtt(tmp_path / "back")
    images, labels = data.sample(1, torch.Generator().manual_seed(0))
    images = images.double().requires_grad_()
    syn_lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    value, *gradients = loss_as_mtt(network, buffer, images, labels, syn_lr)
    real = RealData(data, torch.Generator().manual_seed(0), 0)
    ours = MTT(network, experts, SETTINGS).loss(images, labels, syn_lr, real).value
    torch.testing.assert_close(ours, value)
    for found, expected in zip(torch.autograd.grad(ours, [images, syn_lr]), gradients, strict=True):
        assert expected.abs().max() > 1e-4  # far above what the comparison lets pass
        torch.testing.assert_close(found, expected)


def test_both_ways_continue_where_they_stopped_and_keep_what_is_not_theirs(tmp_path):
    data = make_data()
    source = write_as_mtt(tmp_path / "theirs", [train_as_mtt(data) for _ in range(3)])
    convert(source, tmp_path / "ours", data)
    second = tmp_path / "ours" / "expert_0001.safetensors"
    kept, content = tmp_path / "ours" / "expert_0000.safetensors", second.read_bytes()
    stamp = kept.stat().st_mtime_ns
    second.unlink()
    convert(source, tmp_path / "ours", data)
    assert second.read_bytes() == content
    assert kept.stat().st_mtime_ns == stamp
    (path,) = export_replay_buffers(tmp_path / "ours", tmp_path / "back")
    stamp = path.stat().st_mtime_ns
    export_replay_buffers(tmp_path / "ours", tmp_path / "back")
    assert path.stat().st_mtime_ns == stamp
    others = write_as_mtt(tmp_path / "others", [train_as_mtt(data) for _ in range(3)])
    with pytest.raises(ValueError, match=r"expert_0000\.safetensors holds other experts"):
        convert(others, tmp_path / "ours", data)
    with pytest.raises(ValueError, match="another kind: network is tiny there and large here"):
        convert(source, tmp_path / "ours", data, name="large")
    with pytest.raises(ValueError, match=r"replay_buffer_0\.pt holds other experts"):
        export_replay_buffers(tmp_path / "ours", write_as_mtt(tmp_path / "0", [[], []]))
    with pytest.raises(ValueError, match="holds more files than these experts make"):
        export_replay_buffers(tmp_path / "ours", others)


def test_a_buffer_of_another_network_is_refused_before_anything_is_written(tmp_path):
    data = make_data()
    other = make_data(num_classes=4)
    source = write_as_mtt(tmp_path / "theirs", [train_as_mtt(data), train_as_mtt(other)], 1)
    with pytest.raises(
        ValueError,
        match=r"replay_buffer_1\.pt, trajectory 0, epoch 0 must fit the network: parameter 8 is "
        r"\(4, 32\), and \(3, 32\) in the network, which calls it classifier.weight",
    ):
        convert(source, tmp_path / "ours", data)
    short = write_as_mtt(tmp_path / "short", [train_as_mtt(data), train_as_mtt(data, epochs=2)])
    with pytest.raises(ValueError, match=r"same number of epochs, got 3 in .*; 2 in .*jectory 1"):
        convert(short, tmp_path / "ours", data)
    cut = write_as_mtt(tmp_path / "cut", [[step[:-1] for step in train_as_mtt(data)]])
    with pytest.raises(ValueError, match="there are 9 parameters, and 10 in the network"):
        convert(cut, tmp_path / "ours", data)
    double = [[[p.double() for p in step] for step in train_as_mtt(data)]]
    with pytest.raises(ValueError, match=r"must be of the network's torch\.float32, got torch\.fl"):
        convert(write_as_mtt(tmp_path / "double", double), tmp_path / "ours", data)
    assert not (tmp_path / "ours").exists()


def test_trajectories_that_are_none_are_refused(tmp_path):
    data = make_data()
    # What buffer.py stores on a CPU: .cpu() copies nothing there, and every epoch is the last.
    aliased = train_as_mtt(data, lambda network: [p.detach().cpu() for p in network.parameters()])
    source = write_as_mtt(tmp_path / "aliased", [train_as_mtt(data), aliased])
    with pytest.raises(ValueError, match="trajectory 1 holds the same parameters in every epoch"):
        convert(source, tmp_path / "ours", data)
    diverged = train_as_mtt(data)
    diverged[2][0][0] = torch.nan
    source = write_as_mtt(tmp_path / "diverged", [diverged])
    with pytest.raises(ValueError, match="trajectory 0 must be finite, got inf or NaN in epoch 2"):
        convert(source, tmp_path / "finite", data)
    source = write_as_mtt(tmp_path / "start", [train_as_mtt(data, epochs=0)])
    with pytest.raises(ValueError, match="must hold trajectories of at least one epoch"):
        convert(source, tmp_path / "ours", data)


def four_bars(order=(0, 1, 2, 3)):
    """Four classes of 40 images, told by where a bright bar lies; their labels in an order."""
    bars = torch.arange(4).repeat(40)
    images = 0.3 * torch.rand(160, 1, 8, 8)
    for image, bar in zip(images, bars.tolist(), strict=True):
        image[0, 2 * bar : 2 * bar + 2] += 0.6
    return from_tensors(images, torch.tensor(order)[bars], name="bars")


def make_batch_norm(data):
    return ConvNet(data.num_classes, data.channels, 8, 2, data.image_size, norm="batch")


@pytest.mark.parametrize("make", [make_network, make_batch_norm])
def test_an_expert_is_tested_on_the_data(make, tmp_path, recwarn):
    """Of batch norms the files hold no running statistics."""
    data = four_bars()
    source = write_as_mtt(tmp_path / "theirs", [train_as_mtt(data, epochs=30, make_network=make)])
    experts = import_replay_buffers(source, tmp_path / "a", make(data), "tiny", "bars", data=data)
    assert experts.headers[0]["accuracy"] == 1
    assert not recwarn.list
    other = four_bars((1, 2, 3, 0))
    message = r"first expert classifies 0\.0% of 32 test images of bars, no better than chance"
    with pytest.warns(UserWarning, match=message):
        import_replay_buffers(source, tmp_path / "b", make(data), "tiny", "bars", data=other)
    with pytest.warns(UserWarning, match="data was not given: whether the experts .* not tested"):
        import_replay_buffers(source, tmp_path / "c", make(data), "tiny", "bars")


def test_experts_of_mtts_network_of_one_channel_are_experts_of_ours(tmp_path):
    """MTT pads one channel by 3 at 32 pixels as well; ours did not, and they fell to chance."""
    labels = torch.arange(4).repeat(20)
    images = 0.3 * torch.rand(80, 1, 32, 32)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, 8 * label : 8 * label + 8] += 0.6
    data = from_tensors(images, labels, name="bars")

    def make_theirs(data):
        blocks = []
        for channels, padding in ((1, 3), (8, 1), (8, 1)):
            convolution = nn.Conv2d(channels, 8, 3, padding=padding)
            blocks += [convolution, nn.GroupNorm(8, 8), nn.ReLU(), nn.AvgPool2d(2)]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * 4 * 4, 4))

    theirs = train_as_mtt(data, epochs=20, make_network=make_theirs)
    source = write_as_mtt(tmp_path / "theirs", [theirs])
    network = ConvNet(4, channels=1, width=8, depth=3, image_size=32)
    experts = import_replay_buffers(source, tmp_path / "ours", network, "n", "bars", data=data)
    assert experts.headers[0]["accuracy"] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_numbers_are_cast_when_asked_to(dtype, tmp_path):
    data = make_data()
    stored = [[p.to(dtype) for p in step] for step in train_as_mtt(data)]
    source, folder = write_as_mtt(tmp_path / "theirs", [stored]), tmp_path / "ours"
    with pytest.raises(
        ValueError, match=r"of the network's torch\.float32.*; cast .--cast. converts"
    ):
        convert(source, folder, data)
    network = make_network(data)
    arguments = (source, folder, network, "tiny", "bars")
    experts = import_replay_buffers(*arguments, data=data, cast=True)
    expected = torch.stack([flat([p.float() for p in step]) for step in stored])
    assert torch.equal(experts.trajectory(0), expected)
    indices = write_as_mtt(tmp_path / "integers", [[[p.long() for p in step] for step in stored]])
    with pytest.raises(ValueError, match=r"network's torch\.float32, got torch\.int64"):
        import_replay_buffers(indices, folder, network, "tiny", "bars", data=data, cast=True)


def test_tuples_are_as_good_as_lists(tmp_path):
    data = make_data()
    trajectory = train_as_mtt(data)
    (tmp_path / "theirs").mkdir()
    content = (tuple(tuple(step) for step in trajectory),)
    torch.save(content, tmp_path / "theirs" / "replay_buffer_0.pt")
    experts = convert(tmp_path / "theirs", tmp_path / "ours", data)
    assert torch.equal(experts.trajectory(0), torch.stack([flat(step) for step in trajectory]))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_a_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save([[[torch.ones(2), Evil()]]], "zipped.pt")
    with open("plain.pt", "wb") as file:
        pickle.dump([Evil()], file)
    for name in ("zipped.pt", "plain.pt"):
        with pytest.raises(ValueError, match=f"{name} is truncated, or holds something else than"):
            read_replay_buffer(name)
    assert not os.path.exists("evil")
    torch.load("zipped.pt", weights_only=False)  # it would have
    assert os.path.exists("evil")


@pytest.mark.parametrize("keep", [0, 10, 1000, -10])
def test_a_truncated_file_is_named(keep, tmp_path):
    source = write_as_mtt(tmp_path, [train_as_mtt(make_data())])
    path = source / "replay_buffer_0.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"replay_buffer_0\.pt is truncated"):
        read_replay_buffer(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, r"replay_buffer_0\.pt must be a list or a tuple, got dict"),
        ([[torch.ones(2)]], "trajectory 0, epoch 0 must be a list or a tuple, got Tensor"),
        ([[[torch.ones(2), 3]]], "trajectory 0, epoch 0, parameter 1 must be a tensor, got int"),
    ],
)
def test_other_content_is_named(content, message, tmp_path):
    torch.save(content, tmp_path / "replay_buffer_0.pt")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, tmp_path / "ours", make_data())


def test_the_files_are_counted_as_mtt_counts_them(tmp_path):
    data = make_data()
    with pytest.raises(ValueError, match="must hold replay_buffer_0"):
        convert(tmp_path, tmp_path / "ours", data)
    write_as_mtt(tmp_path, [train_as_mtt(data) for _ in range(3)], 1)
    (tmp_path / "replay_buffer_1.pt").unlink()
    with pytest.raises(ValueError, match=r"from 0 on, replay_buffer_1\.pt is missing"):
        convert(tmp_path, tmp_path / "ours", data)
