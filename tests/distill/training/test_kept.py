"""A training that is kept goes on bit for bit, whenever it is stopped, and no other one does."""

import itertools

import pytest
import torch
from tiny import make_data, maker

from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.training import kept as kept_module
from mim4dd.distill.training.augment import augmentation
from mim4dd.distill.training.kept import KeptTraining
from mim4dd.distill.training.network import train_network

STEPS, BATCH, DROP = 11, 16, 5  # 45 images: an epoch is three steps, and the drop is amid one


class Stopped(Exception):
    pass


@pytest.fixture
def always(monkeypatch):
    """Written after every step, as if each took a minute."""
    monkeypatch.setattr(kept_module, "_SECONDS", 0.0)


def train(data, kept=None, stop_after=None, momentum=0.9, norm="batch", lr_drop=DROP):
    """The trained network; ``stop_after`` is a step after which it stops, before it is written."""
    network = maker(data, norm)(0)

    def after_step(step):
        if step == stop_after:
            raise Stopped

    train_network(
        network,
        data.image_train,
        data.label_train,
        num_steps=STEPS,
        lr=0.05,
        momentum=momentum,
        weight_decay=1e-3,
        batch_size=BATCH,
        generator=torch.Generator().manual_seed(7),
        augment=augmentation("crop_scale"),
        lr_drop=lr_drop,
        after_step=after_step,
        kept=kept,
    )
    return network.state_dict()


def require_equal(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("stop", range(1, STEPS + 1))
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.usefixtures("always")
def test_a_stop_after_any_step_changes_nothing(stop, momentum, tmp_path):
    data, path = make_data(), tmp_path / "training.safetensors"
    with pytest.raises(Stopped):
        train(data, KeptTraining(path, {}), stop, momentum)
    kept = KeptTraining(path, {})
    assert kept.step == stop - 1
    require_equal(train(data, kept, None, momentum), train(data, None, None, momentum))
    assert KeptTraining(path, {}).step == STEPS


@pytest.mark.usefixtures("always")
def test_many_stops_change_nothing_and_add_up(tmp_path):
    data, path = make_data(), tmp_path / "training.safetensors"
    seconds = 0.0
    for stop in (2, 5, 6, 7, 11):
        kept = KeptTraining(path, {})
        assert kept.seconds > seconds
        kept.beside["stop"] = torch.tensor(stop)
        with pytest.raises(Stopped):
            train(data, kept, stop)
        seconds = KeptTraining(path, {}).seconds
        assert kept.seconds >= seconds > 0
        assert KeptTraining(path, {}).beside == {"stop": torch.tensor(stop)}
    require_equal(train(data, KeptTraining(path, {})), train(data))


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    data, path = make_data(), tmp_path / "training.safetensors"
    done = train(data, KeptTraining(path, {}))

    def refuse(*_):
        raise AssertionError("it is trained already")

    monkeypatch.setattr("torch.optim.SGD.step", refuse)
    require_equal(train(data, KeptTraining(path, {})), done)


def test_it_is_written_once_a_minute_and_at_the_end(tmp_path, monkeypatch):
    clock = itertools.count(0, 11)  # seconds, at each look
    monkeypatch.setattr("mim4dd.distill.training.kept.time.perf_counter", lambda: next(clock))
    written = []
    monkeypatch.setattr(
        kept_module, "save_tensors", lambda _path, _tensors, header: written.append(header)
    )
    train(make_data(), KeptTraining(tmp_path / "training.safetensors", {}))
    steps, seconds = ([each[name] for each in written] for name in ("step", "seconds"))
    assert steps[-1] == STEPS
    assert 2 <= len(steps) <= 1 + STEPS // 5
    assert all(later - earlier >= 60 for earlier, later in itertools.pairwise([0, *seconds[:-1]]))


def test_of_several_ranks_the_first_one_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_module, "rank", lambda: 1)
    train(make_data(), KeptTraining(tmp_path / "training.safetensors", {}))
    assert not list(tmp_path.iterdir())


def test_another_training_is_refused(tmp_path):
    data, path = make_data(), tmp_path / "training.safetensors"
    train(data, KeptTraining(path, {"lr": 0.1, "seed": 0}))
    with pytest.raises(ValueError, match=r"holds another training.* lr: 0.1 → 0.2: remove it"):
        KeptTraining(path, {"lr": 0.2, "seed": 0})
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="truncated"):
        KeptTraining(path, {"lr": 0.1, "seed": 0})


WRONG = {
    "a weight of another shape": lambda tensors: {"network.classifier.bias": torch.zeros(4)},
    "a weight of another type": lambda tensors: {
        "network.classifier.bias": tensors["network.classifier.bias"].double()
    },
    "one tensor more": lambda tensors: {"network.more": torch.zeros(1)},
    "momentum of another shape": lambda tensors: {"momentum.0": torch.zeros(2)},
    "momentum of no parameter": lambda tensors: {"momentum.99": torch.zeros(2)},
    "an image that is not there": lambda tensors: {"order": torch.tensor([0, 45])},
    "an image before the first": lambda tensors: {"order": torch.tensor([-1])},
    "images by floats": lambda tensors: {"order": torch.tensor([1.0])},
    "images in a square": lambda tensors: {"order": torch.zeros(2, 2, dtype=torch.int64)},
    "a generator of another kind": lambda tensors: {"generator": torch.zeros(8).byte()},
    "a generator in no state": lambda tensors: {
        "generator": torch.full_like(tensors["generator"], 255)
    },
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_state_that_cannot_be_is_refused(wrong, tmp_path):
    data, path = make_data(), tmp_path / "training.safetensors"
    train(data, KeptTraining(path, {}))
    tensors, header = load_tensors(path)
    save_tensors(path, tensors | WRONG[wrong](tensors), header | {"step": 4})
    with pytest.raises(ValueError, match="does not hold the state of this training: remove it"):
        train(data, KeptTraining(path, {}))


@pytest.mark.parametrize(
    "header", [{"format": "mim4dd.expert.2"}, {"step": 0}, {"step": "1"}, {"identity": None}]
)
def test_a_header_that_cannot_be_is_refused(header, tmp_path):
    path = tmp_path / "training.safetensors"
    train(make_data(), KeptTraining(path, {}))
    tensors, stored = load_tensors(path)
    save_tensors(path, tensors, stored | header)
    with pytest.raises(ValueError, match=r"training\.safetensors"):
        KeptTraining(path, {})
