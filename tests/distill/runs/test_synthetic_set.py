"""A distilled set as PyTorch's own kind of data set, with what it tells of itself."""

import json

import pytest
import torch
import torch.nn.functional as F
from tiny import make_data
from torch.utils.data import DataLoader, Dataset

import mim4dd
from mim4dd import distill
from mim4dd.distill.data import from_tensors
from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.job import run_distillation
from mim4dd.distill.loop import LoopSettings
from mim4dd.distill.loop import distill as distill_with
from mim4dd.distill.methods.base import BaseMethod, Objective
from mim4dd.distill.runs import Provenance, RunDirectory, SyntheticSet

CLASSES = torch.tensor([0, 1, 1, 2])


def make_set(labels=CLASSES, size=4, **more):
    images = torch.randn(4, 2, size, size)
    return SyntheticSet(images, labels, CLASSES, torch.tensor(0.25), images / 2, "abc", **more)


class Halve(BaseMethod):
    """Draws images to zero, whatever the data."""

    def loss(self, image_syn, label_syn, syn_lr, real):
        return Objective((image_syn**2).mean(), ())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = distill.resolve(
        method="dm", width=8, depth=2, iterations=2, batch_real=4, num_eval=3, eval_epochs=2,
        eval_every=2, checkpoint_every=1, num_keys=20, data_path="/home/me", seed=3,
    )  # fmt: skip
    run = RunDirectory(tmp_path_factory.mktemp("run") / "dm")
    run_distillation(config, config.load_data(), run)
    return run


def test_pytorch_takes_it_for_a_data_set():
    synthetic = make_set()
    assert isinstance(synthetic, Dataset)
    assert len(synthetic) == 4
    image, label = synthetic[2]
    assert torch.equal(image, synthetic.image_syn[2])
    assert (label.dtype, label.item()) == (torch.int64, 1)
    assert [label.item() for _, label in synthetic] == CLASSES.tolist()
    with pytest.raises(IndexError):
        synthetic[4]
    soft = make_set(torch.rand(4, 3).softmax(1))
    for each in (synthetic, soft):
        (images, labels), (rest, _) = DataLoader(each, batch_size=3, num_workers=0)
        assert torch.equal(torch.cat([images, rest]), each.image_syn)
        assert torch.equal(labels, each.label_syn[:3])
        assert F.cross_entropy(torch.zeros(3, 3), labels).item() == pytest.approx(1.0986, abs=1e-4)


def test_repr_tells_what_it_is():
    assert repr(make_set()) == (
        "SyntheticSet of 4 images of 2 × 4 × 4, 1 to 2 per class of 3: a, b, c\n"
        "  hard labels, syn_lr 0.25"
    )
    known = Provenance("bars", "mtt + mim4dd", {"seed": 1}, "9.9", source="read from here")
    synthetic = make_set(torch.rand(4, 3).softmax(1), provenance=known)
    synthetic.class_names = ("a", "b", "c", "d")
    synthetic = synthetic.with_accuracy("convnet", [0.5, 0.7], 4).with_accuracy("mlp", [0.25])
    assert repr(synthetic).splitlines() == [
        "SyntheticSet of 4 images of 2 × 4 × 4, 0 to 2 per class of 4: a, b, c, …",
        "  method mtt + mim4dd, data bars, mim4dd 9.9, soft labels, syn_lr 0.25",
        "  test accuracy 60.0 (14.1) % of 2 convnet, 25.0 % of 1 mlp",
        "  read from here",
    ]
    assert "nan % of 2 convnet" in repr(synthetic.with_accuracy("convnet", [0.5, float("nan")]))


def test_a_run_leaves_its_provenance(run):
    data = distill.resolve(method="dm").load_data()
    result = run.load_result()
    assert result.made_of == json.loads(json.dumps(describe_data(data)))
    known = result.provenance
    assert (known.data, known.method) == ("digits", "dm + mim4dd")
    assert (known.version, known.source) == (mim4dd.__version__, "")
    options = run.read_config()
    of_the_machine = {"data_path", "device", "download", "keep_bytes"}
    assert known.options == {name: options[name] for name in options.keys() - of_the_machine}
    assert (known.options["seed"], known.options["batch_real"]) == (3, 4)
    last = run.read_metrics()[-1]
    (measured,) = known.accuracies
    assert (measured.network, len(measured.values)) == ("convnet", last["accuracy_seeds"])
    assert sum(measured.values) / 2 == pytest.approx(last["accuracy"])
    # What is not finished tells the same, but for what was not measured.
    earlier, _ = run.load_set(0)
    assert earlier.provenance.options == known.options
    assert not earlier.provenance.accuracies


def test_a_program_without_options_leaves_what_it_has(tmp_path):
    data = make_data()
    run = RunDirectory(tmp_path)
    distill_with(Halve(), data, LoopSettings(ipc=2, iterations=1, seed=5, lr_img=0.1), run)
    known = run.load_result().provenance
    assert (known.data, known.method) == ("bars", "Halve")
    assert (known.options["seed"], known.options["ipc"]) == (5, 2)


def test_the_file_holds_all_of_it(tmp_path):
    data = make_data()
    known = Provenance("bars", "dm", {"seed": 1, "width": 8}, "9.9", source="from elsewhere")
    synthetic = make_set(made_of=describe_data(data), provenance=known)
    synthetic = synthetic.with_accuracy("convnet", torch.tensor([0.5, 0.25]).tolist(), 7)
    synthetic.save(str(tmp_path / "set.safetensors"))
    stored = SyntheticSet.load(tmp_path / "set.safetensors")
    assert stored.provenance == synthetic.provenance
    assert stored.provenance.accuracies[0].values == (0.5, 0.25)
    assert repr(stored) == repr(synthetic)
    for name in ("image_syn", "label_syn", "class_syn", "syn_lr", "pixels"):
        assert torch.equal(getattr(stored, name), getattr(synthetic, name))
    assert stored.to("cpu").provenance == stored.provenance


def test_sets_of_older_versions_are_read(tmp_path):
    path = tmp_path / "set.safetensors"
    make_set().save(path)
    tensors, header = load_tensors(path)
    del header["provenance"]
    save_tensors(path, tensors, header | {"format": "mim4dd.synthetic.2"})
    stored = SyntheticSet.load(path)
    assert stored.provenance == Provenance()
    assert torch.equal(stored.pixels, tensors["pixels"])
    save_tensors(path, tensors, header | {"format": "mim4dd.synthetic.99"})
    with pytest.raises(ValueError, match="does not hold a synthetic set of mim4dd that this"):
        SyntheticSet.load(path)


def test_the_normalisation_for_other_images_is_in_the_file():
    images, labels = torch.rand(30, 2, 4, 4), torch.arange(30) % 3
    data = from_tensors(images, labels, class_names="abc")
    normalization = make_set(made_of=describe_data(data)).normalization
    torch.testing.assert_close(normalization(images), data.normalization(images))
    torch.testing.assert_close(normalization.inverse(images), data.normalization.inverse(images))
    whitened = from_tensors(images, labels, class_names="abc", zca=True)
    synthetic = make_set(made_of=describe_data(whitened), provenance=Provenance("bars"))
    assert synthetic.normalization is None
    assert "data bars (ZCA)" in repr(synthetic)
    assert make_set().normalization is None


@pytest.mark.parametrize("columns", [3, 40])
def test_rows(columns):
    data = from_tensors(torch.rand(30, columns), torch.arange(30) % 3)
    rows = torch.randn(3, columns)
    labels = torch.arange(3)
    synthetic = SyntheticSet(
        rows, labels, labels, torch.tensor(0.1), rows, data.class_names, describe_data(data)
    )
    assert repr(synthetic).startswith(f"SyntheticSet of 3 rows of {columns}, 1 per class of 3")
    normalization = synthetic.normalization
    if columns == 40:  # of which the description holds projections
        assert normalization is None
    else:
        torch.testing.assert_close(normalization(rows), data.normalization(rows))
