"""What is paired with data and networks knows them: experts, distilled sets, teachers."""

import copy
import dataclasses
import pickle
import shutil

import pytest
import torch
from PIL import Image
from tiny import TRAINING
from torch import nn

from mim4dd import fuse
from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.data import from_folder, from_tensors
from mim4dd.distill.experts import ExpertBuffer, train_experts
from mim4dd.distill.experts.buffer import expert_path
from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.identity import data as data_identity
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.identity.describe import describe_network, differences
from mim4dd.distill.job import judge
from mim4dd.distill.loop import LoopSettings, distill
from mim4dd.distill.methods.mtt import MTT, MTTSettings
from mim4dd.distill.methods.sre2l import SRe2L, SRe2LSettings
from mim4dd.distill.networks import ConvNet
from mim4dd.distill.runs import RunDirectory
from mim4dd.distill.sweep.grid import make_setting
from mim4dd.distill.sweep.jobs import claim_sources

CLASSES = ("terrier", "beagle", "dingo")
SETTINGS = LoopSettings(iterations=1, lr_img=0.1, lr_lr=0.0)


def make_pictures(folder, names=CLASSES, size=8, per_class=10, seed=0):
    """A folder for each class, with bars at its place."""
    generator = torch.Generator().manual_seed(seed)
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = torch.randint(90, (size, size), generator=generator)
            pixels[:, 2 * label : 2 * label + 2] += 160
            Image.fromarray(pixels.byte().numpy()).save(folder / name / f"{index}.png")
    return folder


def in_order(data, names):
    """The same pictures with the classes in another order, as a list of names gives them."""
    order = [data.class_names.index(name) for name in names]
    place = torch.tensor([order.index(label) for label in range(len(order))])
    return dataclasses.replace(
        data,
        class_names=tuple(names),
        label_train=place[data.label_train],
        label_test=place[data.label_test],
    )


def make_network(data, pooling="avg"):
    return ConvNet(data.num_classes, data.channels, 8, 2, data.image_size, pooling=pooling)


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Data whose classes are not in alphabetical order, and experts of it."""
    folder = tmp_path_factory.mktemp("named")
    data = in_order(from_folder(make_pictures(folder / "woof")), CLASSES)
    experts = train_experts(make_network, "tiny", data, TRAINING, folder / "experts")
    return folder, data, experts


def distil(experts, network, data, folder):
    method = MTT(network, experts, MTTSettings(syn_steps=1, max_start_epoch=1))
    return distill(method, data, SETTINGS, RunDirectory(folder / "run"))


def test_experts_of_the_classes_in_another_order_are_refused(named, tmp_path):
    """Accuracy 1.000 on the one and 0.000 on the other, and no word of it."""
    folder, data, experts = named
    alphabetical = from_folder(folder / "woof")
    assert alphabetical.name == "woof"
    with pytest.raises(ValueError, match=r"data.class_names\[0\]: 'terrier' → 'beagle'"):
        distil(experts, make_network(alphabetical), alphabetical, tmp_path)
    assert not (tmp_path / "run").exists()
    (folder / "woof").rename(folder / "renamed")
    try:
        renamed = in_order(from_folder(folder / "renamed"), CLASSES)
        assert renamed.name != data.name
        distil(experts, make_network(renamed), renamed, tmp_path)
        again = train_experts(make_network, "tiny", renamed, TRAINING, folder / "experts")
        assert len(again) == len(experts)  # which are his, too
    finally:
        (folder / "renamed").rename(folder / "woof")
    with pytest.raises(ValueError, match=r"another kind: task.data.class_names\[0\] is terrier"):
        train_experts(make_network, "tiny", alphabetical, TRAINING, folder / "experts")


def brighter(data):
    images = data.image_train.clone()
    images[0] += 0.1
    return dataclasses.replace(data, image_train=images)


def swapped_labels(data):
    labels = data.label_train.clone()
    first, second = (int((labels == label).int().argmax()) for label in (0, 1))
    labels[first], labels[second] = 1, 0
    return dataclasses.replace(data, label_train=labels)


def otherwise_normalized(data):
    pixels, tests = (data.normalization.inverse(x) for x in (data.image_train, data.image_test))
    test = tests, data.label_test
    names = data.class_names
    return from_tensors(pixels, data.label_train, test, class_names=names, name="woof", zca=True)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (brighter, "data.train.content"),
        (swapped_labels, "data.train.content"),
        (otherwise_normalized, "data.normalization.kind: 'scale' → 'zca'"),
    ],
)
def test_experts_of_other_pictures_are_refused(change, what, named, tmp_path):
    _, data, experts = named
    with pytest.raises(ValueError, match=what):
        distil(experts, make_network(data), change(data), tmp_path)


def test_experts_of_a_network_that_has_the_same_parameters_alone_are_refused(named, tmp_path):
    _, data, experts = named
    with pytest.raises(ValueError, match=r"network.blocks.0.*AvgPool|network.blocks.0.*pool=2"):
        distil(experts, make_network(data, pooling="max"), data, tmp_path)


def test_a_fused_network_is_the_same_network():
    def layers(*more):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4), nn.ReLU(), *more)

    plain, fused = (layers(nn.AvgPool2d(2), nn.Flatten()) for _ in range(2))
    assert fuse(fused)
    assert describe_network(plain) == describe_network(fused)
    assert "1" in describe_network(plain)
    assert differences(describe_network(plain), describe_network(layers(nn.MaxPool2d(2))))


def test_a_networks_frozen_weights_count_and_its_others_do_not():
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    assert describe_network(first) == describe_network(second)
    for linear in (first, second):
        linear.requires_grad_(False)
    assert describe_network(first) != describe_network(second)


def test_experts_that_do_not_say_what_they_are_of_are_accepted_with_a_word(named, tmp_path):
    folder, data, _ = named
    for index in range(2):
        tensors, header = load_tensors(expert_path(folder / "experts", index))
        save_tensors(expert_path(tmp_path, index), tensors, header | {"task": None})
    imported = ExpertBuffer(tmp_path)
    with pytest.warns(UserWarning, match="do not say what they were trained on"):
        distil(imported, make_network(data), data, tmp_path)
    renamed = dataclasses.replace(data, name="other")
    with pytest.raises(ValueError, match="of the data 'other', these are of 'woof'"):
        imported.require_task(make_network(data), renamed)


def test_a_set_is_judged_on_the_data_that_it_was_made_of(named, tmp_path):
    folder, data, experts = named
    made = distil(experts, make_network(data), data, tmp_path)
    stored = RunDirectory(tmp_path / "run").load_result()
    config = DistillConfig.of(num_eval=1, eval_epochs=1, width=8)
    assert judge(stored, data, config) == judge(made, data, config)
    for other, what in (
        (from_folder(folder / "woof"), r"class_names\[0\]: 'terrier' → 'beagle'"),
        (brighter(data), "train.content"),
    ):
        with pytest.raises(ValueError, match=what):
            judge(stored, other, config)
    stored.made_of = None  # as an older mim4dd left it
    judge(stored, brighter(data), config)
    with pytest.raises(ValueError, match="class_names"):
        judge(stored, from_folder(folder / "woof"), config)


def test_teachers_of_other_data_are_refused(named, tmp_path):
    _, data, _ = named

    def teacher(seed):
        return ConvNet(data.num_classes, data.channels, 4, 1, data.image_size, norm="batch")

    method = SRe2L(teacher, data, 0, SRe2LSettings(squeeze_epochs=1))
    with pytest.raises(ValueError, match=r"what the teachers are trained on, got.*train.content"):
        distill(method, swapped_labels(data), SETTINGS, RunDirectory(tmp_path / "run"))


def test_a_sweep_takes_no_finished_runs_of_other_data_or_experts(named, tmp_path):
    """They are known by their options, which name a folder and not what is in it."""
    folder, data, _ = named
    pictures = make_pictures(tmp_path / "bars", "abc")
    shutil.copytree(folder / "experts", tmp_path / "experts")
    given = {"data": str(pictures), "experts": str(tmp_path / "experts"), "method": "mtt"}

    def claim():
        claim_sources(tmp_path / "out", [make_setting(given, {}, ["weight"])])

    claim()
    claim()
    picture = pictures / "a" / "0.png"
    kept = picture.read_bytes()
    picture.write_bytes((pictures / "b" / "0.png").read_bytes())
    with pytest.raises(ValueError, match=r"distillations of other data .*bars.*content \(other"):
        claim()
    picture.write_bytes(kept)
    claim()
    changed = dataclasses.replace(TRAINING, lr_expert=0.01)
    shutil.rmtree(tmp_path / "experts")
    train_experts(make_network, "tiny", data, changed, tmp_path / "experts")
    with pytest.raises(ValueError, match=r"distillations of other experts .*: ends: '\w+' → "):
        claim()


def test_a_description_is_of_the_content_alone(named):
    _, data, _ = named
    described = describe_data(data)
    order = torch.randperm(len(data.label_train))
    shuffled = dataclasses.replace(
        data, image_train=data.image_train[order], label_train=data.label_train[order], name="x"
    )
    assert differences(described, describe_data(shuffled)) == []
    rounded = dataclasses.replace(data, image_train=data.image_train * (1 + 2e-7))
    assert differences(described, describe_data(rounded)) == []
    for shown in (data.image_train.flip(3), data.image_train.roll(1, 2), data.image_train[..., :7]):
        assert differences(described, describe_data(dataclasses.replace(data, image_train=shown)))
    rows = from_tensors(torch.randn(40, 5), torch.arange(40) % 2)
    assert describe_data(rows)["sample_shape"] == [5]


def test_data_are_described_once_until_they_change(named, monkeypatch):
    passes = []
    part = data_identity._part
    monkeypatch.setattr(data_identity, "_part", lambda *given: passes.append(1) or part(*given))
    data = copy.deepcopy(named[1])
    first = describe_data(data)
    first["train"]["counts"].clear()  # a caller's own
    assert describe_data(data)["train"]["counts"] == [8, 8, 8]
    assert len(passes) == 2  # of the training and the test part
    for copied in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        copied.image_train.mul_(2)
        assert differences(describe_data(data), describe_data(copied))
    assert len(passes) == 6
    before = describe_data(data)
    data.image_train[0] += 1
    assert differences(before, describe_data(data))


def test_a_whitening_matrix_is_described_without_a_table_of_its_size(monkeypatch):
    torch.manual_seed(0)
    data = from_tensors(torch.rand(60, 3, 6, 6), torch.arange(60) % 2, zca=True)
    lengths = []
    waves = data_identity._waves
    monkeypatch.setattr(
        data_identity, "_waves", lambda length: lengths.append(length) or waves(length)
    )
    factor = data.normalization.whiten
    assert factor.shape == (108, 108)
    described = describe_data(data)
    assert max(lengths) == 108
    for other in (factor.flip(0), factor.flip(1), factor.roll(1, 0), factor * 1.01):
        normalization = dataclasses.replace(data.normalization, whiten=other)
        changed = dataclasses.replace(data, normalization=normalization)
        assert differences(described, describe_data(changed))
