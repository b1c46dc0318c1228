"""A number of images for each class: every method, evaluation, files and commands."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from bilevel import real_data
from command_line import outcome
from same_run import leavings
from tiny import make_data, make_network

from mim4dd import distill
from mim4dd.distill.commands.set_files import load_judged
from mim4dd.distill.data import from_dataset, from_tensors
from mim4dd.distill.data.per_class import class_counts
from mim4dd.distill.methods.base import RealData
from mim4dd.distill.methods.cafe import CAFE, CAFESettings
from mim4dd.distill.methods.dc import DC, DCSettings
from mim4dd.distill.methods.dm import DM, DMSettings
from mim4dd.distill.networks import ConvNet
from mim4dd.distill.runs import RunDirectory, SyntheticSet
from mim4dd.distill.training.network import seeded_network

TINY = {"width": 4, "depth": 1, "eval_every": 0, "num_eval": 1, "eval_epochs": 2, "iterations": 2}
FEW_STEPS = {"syn_steps": 2, "max_start_epoch": 2}
OPTIONS = {
    "dm": {"batch_real": 4},
    "dc": {"batch_real": 4, "outer_loop": 2},
    "dsa": {"batch_real": 4, "dsa_strategy": "crop_flip"},
    "cafe": {"batch_real": 4},
    "rat_bptt": {"syn_steps": 2, "batch_target": 9},
    "at_bptt": {"syn_steps": 2, "batch_target": 9},
    "mtt": FEW_STEPS,
    "tesla": FEW_STEPS,
    "datm": FEW_STEPS,
    "ncfm": {"num_pairs": 1, "squeeze_epochs": 1, "num_frequencies": 8, "batch_real": 4},
    "edc": {"squeeze_epochs": 1, "norm": "batch"},
    "rded": {"squeeze_epochs": 1, "candidates": 12},
}
COUNTS = (3, 1, 2)


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    return make_data()


@pytest.fixture(scope="module")
def experts(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    distill.train_experts(data, folder, num_experts=2, train_epochs=4, width=4, depth=1)
    return str(folder)


def distilled(data, experts, method, ipc, **options):
    options = TINY | OPTIONS[method] | options
    if method in ("mtt", "tesla", "datm"):
        options["experts"] = experts
    return distill.run(data, method=method, ipc=ipc, num_keys=20, **options)


@pytest.mark.parametrize("method", OPTIONS)
def test_every_method_learns_as_many_images_of_each_class(method, data, experts):
    run = distilled(data, experts, method, COUNTS)
    assert run.synthetic.per_class == list(COUNTS)
    assert run.synthetic.class_syn.tolist() == [0, 0, 0, 1, 2, 2]
    assert run.config.ipc == 3
    assert "1 to 3 images per class, finished" in repr(run)
    if method not in ("datm", "rded", "edc"):  # whose labels are learned, or a teacher's
        assert run.labels.tolist() == [0, 0, 0, 1, 2, 2]
    start = SyntheticSet.load(RunDirectory(run.path).initial)
    assert not torch.equal(run.images, start.image_syn)
    # As many of each, said either way, are the same run.
    same = [distilled(data, experts, method, ipc).images for ipc in (2, (2, 2, 2))]
    assert torch.equal(*same)


@pytest.mark.parametrize("init", ["noise", "unit_noise"])
def test_noise_of_any_count(init, data, experts):
    run = distilled(data, experts, "dm", COUNTS, init=init)
    assert run.synthetic.per_class == list(COUNTS)


def test_the_recovery_of_batch_statistics_needs_as_many_of_each(data, tmp_path):
    options = TINY | {"method": "sre2l", "norm": "batch", "squeeze_epochs": 1}
    message = r"ipc_by_class must be one number for all classes with SRe2L.*, got 3, 1, 2"
    with pytest.raises(ValueError, match=message):
        distill.run(data, ipc=COUNTS, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    assert len(distill.run(data, ipc=(2, 2, 2), **options).images) == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda new: DM(new, DMSettings(batch_real=4)),
        lambda new: DC(new, DCSettings(batch_real=4)),
        lambda new: CAFE(new, CAFESettings(batch_real=4)),
    ],
    ids=["dm", "dc", "cafe"],
)
def test_a_mean_over_a_class_is_that_of_its_repeated_images(make, data):
    """So a set with one image of a class is worth one with it twice."""
    data = dataclasses.replace(data, image_train=data.image_train.double())
    method = make(lambda seed: seeded_network(lambda: make_network(data), seed).double())
    images, labels = data.sample((2, 1, 1), torch.Generator().manual_seed(0))
    repeated = torch.tensor([0, 1, 2, 2, 3, 3])
    values = []
    for rows, counts in ((torch.arange(4), (2, 1, 1)), (repeated, None)):
        given = images[rows].requires_grad_()
        real = dataclasses.replace(real_data(data), per_class=counts)
        value = method.loss(given, labels[rows], torch.tensor(0.1), real).value
        value.backward()
        assert given.grad.isfinite().all()
        values.append(value.item())
        method.carried = {}
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_the_classes_of_a_batch_norm_network_are_one_batch(data):
    """Σ_c ‖mean ψ(real_c) − mean ψ(syn_c)‖² with the features of the whole set."""

    def make(seed):
        return seeded_network(lambda: ConvNet(3, 1, 4, 1, 8, "batch"), seed)

    images, labels = data.sample(COUNTS, torch.Generator().manual_seed(0))
    outcome = DM(make, DMSettings(batch_real=5)).loss(
        images, labels, torch.tensor(0.1), dataclasses.replace(real_data(data), per_class=COUNTS)
    )
    real = real_data(data)
    network = make(real.seed()).train()
    batches = []
    for label in range(3):
        batches.append(real.sample_class(label, 5))
        real.seed()
    on_real = network.blocks(torch.cat(batches)).flatten(1).split(5)
    on_syn = network.blocks(images).flatten(1).split(COUNTS)
    pairs = zip(on_real, on_syn, strict=True)
    expected = sum((one.mean(0) - other.mean(0)).square().sum() for one, other in pairs)
    torch.testing.assert_close(outcome.value, expected)


@pytest.fixture
def mim4dd(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    return lambda words: outcome(capfd, *words.split())


def test_commands_from_distillation_to_pictures(mim4dd, tmp_path):
    counts = [3, 2, 1, 1, 1, 1, 1, 1, 1, 2]
    words = "--method dm --batch-real 4 --width 4 --depth 1 --iterations 3 --num-eval 1"
    words += " --eval-epochs 2 --eval-every 0 --ipc-by-class 3,2,1,1,1,1,1,1,1,2"
    assert mim4dd(f"distill {words} --out run")[0] == 0
    config = json.loads(Path("run/config.json").read_text())
    assert (config["ipc"], config["ipc_by_class"]) == (3, "3,2,1,1,1,1,1,1,1,2")
    assert SyntheticSet.load("run/synthetic.safetensors").per_class == counts
    status, out, _ = mim4dd("evaluate run run/synthetic.safetensors")
    assert (status, out.splitlines()[2].startswith("1 to 3 random real images per class ")) == (
        0,
        True,
    )
    assert mim4dd("show run --no-features")[0] == 0
    distill.open_run("run").export("exported")
    assert [
        len(list(Path("exported/images", str(digit)).iterdir())) for digit in range(10)
    ] == counts
    assert mim4dd(f"compare {words} --num-distill 1 --num-keys 20 --out both")[0] == 0
    assert list(json.loads(Path("both/summary.json").read_text())["accuracy"]["ipc"]) == ["1 to 3"]


def test_a_stopped_run_goes_on_bit_for_bit(data, tmp_path):
    options = TINY | OPTIONS["dc"] | {"method": "dc", "iterations": 4, "ipc": COUNTS}
    distill.run(data, out=tmp_path / "whole", **options)

    def stop(run):
        if run.iteration == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.warns(UserWarning, match="stopped before iteration 3"):
        distill.run(data, out=tmp_path / "parts", callback=stop, **options)
    distill.run(data, out=tmp_path / "parts", **options)
    assert leavings(tmp_path / "whole") == leavings(tmp_path / "parts")
    with pytest.raises(ValueError, match="another ipc_by_class: '3,1,2' → '3,2,1'"):
        distill.run(data, out=tmp_path / "parts", **options | {"ipc": (3, 2, 1)})


def test_a_sets_of_another_project_may_be_uneven(tmp_path):
    labels = torch.tensor([0, 0, *range(1, 10)])
    torch.save(torch.randn(11, 1, 8, 8), tmp_path / "images_best.pt")
    torch.save(labels, tmp_path / "labels_best.pt")
    (judged,) = load_judged(tmp_path, None, {"data": "digits"}, {})
    assert judged.config.ipc_by_class == "2,1,1,1,1,1,1,1,1,1"
    assert judged.synthetic.per_class == [2, *[1] * 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ipc": (3, 1)}, "a number for each of the 3 classes, or one for all, got 2 numbers"),
        ({"ipc": (3, 0, 1)}, "ipc_by_class must be numbers from 1 on, joined by commas"),
        ({"ipc_by_class": "3,a,1"}, "ipc_by_class must be numbers .* got '3,a,1'"),
        ({"ipc": 2, "ipc_by_class": "3,1,1"}, "ipc must be left out beside .* largest.* 3, got 2"),
        ({"ipc": (1, 2, 3), "ipc_by_class": "3,1,1"}, "ipc must be one number beside"),
        ({"ipc": (1, 13, 1)}, "at most the size of each class: 13 images .* class '1' has 12"),
    ],
)
def test_counts_that_cannot_be_are_refused_and_leave_nothing(options, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        distill.run(data, method="dm", out=tmp_path / "run", **TINY, **options)
    assert not (tmp_path / "run").exists()


def test_counts():
    assert class_counts(2, 3) == [2, 2, 2]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        class_counts((1, 0), 2)


def test_defaults_are_those_of_the_largest_class():
    uneven = distill.resolve(method="mtt", data="cifar10", ipc=[10] + [1] * 9)
    even = distill.resolve(method="mtt", data="cifar10", ipc=10)
    assert uneven.options() == even.options() | {"ipc_by_class": "10,1,1,1,1,1,1,1,1,1"}


def test_a_class_smaller_than_a_batch_gives_all_that_it_has(data):
    tail = torch.cat([torch.where(data.label_train == label)[0][:count]
                      for label, count in enumerate((12, 2, 1))])  # fmt: skip
    uneven = dataclasses.replace(
        data, image_train=data.image_train[tail], label_train=data.label_train[tail]
    )
    for method in ("dm", "dc", "cafe"):
        options = TINY | OPTIONS[method] | {"batch_real": 8, "method": method}
        run = distill.run(uneven, ipc=(4, 2, 1), **options)
        assert run.images.isfinite().all()
    real = RealData(uneven, torch.Generator())
    assert [len(real.sample_class(label, 8)) for label in range(3)] == [8, 2, 1]
    table = run.evaluate()
    assert "1 to 4 random real images per class" in table
    without = dataclasses.replace(
        uneven, image_train=uneven.image_train[:-1], label_train=uneven.label_train[:-1]
    )
    with pytest.raises(ValueError, match="every class, class '2' has none"):
        RealData(without, torch.Generator()).sample_class(2, 8)
    for init in ("real", "noise"):
        with pytest.raises(ValueError, match=r"at most the size .* class '2' has 0"):
            distill.run(without, method="dm", init=init, batch_real=8, **TINY)


def test_several_classes_of_an_image_are_refused():
    images = torch.rand(12, 1, 8, 8)
    message = r"images of several classes \(multi-label\) cannot be distilled"
    for labels in (torch.randint(2, (12, 3)), torch.rand(12, 3)):
        with pytest.raises(ValueError, match=message):
            from_tensors(images, labels)
        with pytest.raises(ValueError, match=message):
            from_dataset(list(zip(images, labels, strict=True)))
    with pytest.raises(TypeError, match="labels must have an integer dtype"):
        from_tensors(images, torch.rand(12))
    with pytest.raises(TypeError, match="labels must be integers, label 0 is"):
        from_dataset([(image, 0.5) for image in images])
