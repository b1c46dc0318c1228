"""Sets in files without their run: what `mim4dd evaluate` makes of them."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from command_line import exit_status

from mim4dd import distill
from mim4dd.distill.commands.set_files import load_judged
from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.data import from_tensors
from mim4dd.distill.files.atomic import load_tensors, save_tensors
from mim4dd.distill.identity.data import describe_data
from mim4dd.distill.runs import SyntheticSet

DIGITS = torch.arange(10)
FEW = {"num_eval": 2, "eval_epochs": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run of DM on digits, and its set by itself."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        options = "--method dm --weight 0 --width 4 --depth 2 --iterations 1 --batch-real 4"
        evaluation = "--num-eval 2 --eval-epochs 2 --eval-every 0"
        exit_status(*f"distill {options} {evaluation} --out run".split())
    shutil.copy(folder / "run/synthetic.safetensors", folder / "set.safetensors")
    return folder


@pytest.fixture
def mim4dd(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    return lambda command: exit_status(*command.split())


def accuracies(path):
    with Path(path).open() as file:
        return {row["set"]: (row["mean"], row["std"]) for row in csv.DictReader(file)}


def without_provenance(source, target):
    """The set as mim4dd 0.2 left it."""
    tensors, header = load_tensors(source)
    del header["provenance"]
    save_tensors(target, tensors, header | {"format": "mim4dd.synthetic.2"})


def test_a_set_is_judged_as_its_run_is(mim4dd, made, tmp_path):
    (measured,) = SyntheticSet.load("set.safetensors").provenance.accuracies
    table = tmp_path / "table.csv"
    assert mim4dd(f"evaluate run set.safetensors --csv {table}") == 0
    found = accuracies(table)
    assert found["set.safetensors"] == found["run"]
    mean = sum(measured.values) / 2
    assert (measured.network, float(found["run"][0])) == ("convnet", pytest.approx(mean))
    assert len(found) == 4  # with the baselines, which are the same for both
    (judged,) = load_judged(Path("set.safetensors"), None, {}, {"num_eval": 1})
    assert judged.config.options() == {
        **distill.resolve(method="dm").options(), "weight": 0.0, "width": 4, "depth": 2,
        "iterations": 1, "batch_real": 4, "num_eval": 1, "eval_epochs": 2, "eval_every": 0,
    }  # fmt: skip


def test_a_set_without_provenance_is_judged_by_the_defaults(mim4dd, made, tmp_path):
    old = tmp_path / "old.safetensors"
    without_provenance("set.safetensors", old)
    (judged,) = load_judged(old, None, {"data": "digits", "device": "cpu"}, FEW)
    assert judged.config == distill.resolve(data="digits", ipc=1, **FEW)
    assert mim4dd(f"evaluate {old}") == (
        f"mim4dd: data (--data) must name the real data that {old} is of, which says not"
    )
    # Nobody need say how it is normalised, as the set does.
    whitened = from_tensors(torch.rand(100, 1, 8, 8), torch.arange(100) % 10, zca=True)
    synthetic = SyntheticSet.load(old)
    synthetic.made_of = describe_data(whitened)
    synthetic.save(old)
    (judged,) = load_judged(old, None, {"data": "digits"}, FEW)
    assert judged.config == distill.resolve(data="digits", ipc=1, zca=True, **FEW)


def test_other_data_are_refused(mim4dd):
    for options in ("--zca", "--data shapes"):
        message = mim4dd(f"evaluate set.safetensors {options} --no-baselines")
        assert message.startswith("mim4dd: data must be what the set was made of"), message


def write_mtt(folder, images, labels):
    folder.mkdir(exist_ok=True)
    torch.save(images, folder / "images_best.pt")
    torch.save(labels, folder / "labels_best.pt")


def test_sets_of_other_projects_beside_a_run(mim4dd, tmp_path, capsys):
    write_mtt(tmp_path / "mtt", torch.randn(10, 1, 8, 8), DIGITS)
    dc = tmp_path / "res_DM_Digits_ConvNet_1ipc.pt"
    torch.save({"data": [[torch.randn(10, 1, 8, 8), DIGITS]] * 2}, dc)
    table = tmp_path / "table.csv"
    options = f"--data digits --lr 0.03 --num-eval 2 --eval-epochs 1 --no-baselines --csv {table}"
    assert mim4dd(f"evaluate run {tmp_path}/mtt {dc} {options}") == 0
    first, second = f"{dc}, experiment 0", f"{dc}, experiment 1"
    found = accuracies(table)
    assert list(found) == ["run", f"{tmp_path}/mtt/images_best.pt", first, second]
    assert found[first] == found[second]  # the same set, trained on alike
    err = capsys.readouterr().err
    assert "images_best.pt, taken for a set of digits: normalised by its mean and deviation" in err
    assert "step size" not in err


def test_published_defaults_for_sets_of_other_projects(tmp_path, monkeypatch):
    """CIFAR-10, were it there, and smaller."""
    asked = []

    def load(config):
        asked.append(config)
        images, labels = torch.rand(40, 3, 4, 4), torch.arange(40) % 10
        return from_tensors(images, labels, name=config.data, zca=config.zca)

    monkeypatch.setattr(DistillConfig, "load_data", load)
    images, places = torch.randn(10, 3, 4, 4), {"data": "cifar10"}
    write_mtt(tmp_path, images, DIGITS)
    torch.save({"data": [[images, DIGITS]]}, tmp_path / "res_DSA_CIFAR10_ConvNet_1ipc.pt")
    cases = [
        (tmp_path, places, {"method": "mtt", "zca": True}),
        (tmp_path, places | {"zca": False}, {"method": "mtt", "zca": False}),
        (tmp_path / "res_DSA_CIFAR10_ConvNet_1ipc.pt", {}, {"method": "dsa", "zca": False}),
    ]
    for path, of_sets, expected in cases:
        (judged,) = load_judged(path, None, of_sets, {})
        assert judged.config == distill.resolve(data="cifar10", ipc=1, **expected)
        assert judged.load(judged.config).normalization.whiten.dim() == (
            2 if expected["zca"] else 3
        )
        assert judged.synthetic.provenance.source
    assert len(asked) == 3  # loaded once for each
    write_mtt(tmp_path, images, torch.randn(10, 10))
    assert load_judged(tmp_path, None, places, {})[0].config.method_name == "tesla"
    torch.save(torch.tensor(0.1), tmp_path / "lr_best.pt")
    assert load_judged(tmp_path, None, places, {})[0].config.method_name == "datm"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("run --lr 0.1 --data digits", "--data, --lr must be left out for run directories"),
        ("set.safetensors --lr 0.1", "lr must be left out for set.safetensors, which holds"),
        ("set.safetensors --iteration 1", "iteration applies only to run directories with a con"),
        ("nowhere.safetensors", "nowhere.safetensors/config.json does not exist"),
        ("uneven --data digits", "uneven must hold images of each class, got [2, 0, 1"),
        ("uneven", "data (--data) must name the real data that uneven is of, which says not"),
    ],
)  # fmt: skip
def test_bad_calls(words, message, mim4dd, made):
    write_mtt(made / "uneven", torch.randn(10, 1, 8, 8), torch.where(DIGITS == 1, 0, DIGITS))
    assert mim4dd(f"evaluate {words}").startswith(f"mim4dd: {message}")


def test_a_run_of_a_program_without_options(made, tmp_path):
    """No config.json says how to judge it: the set does, or the defaults."""
    (tmp_path / "run").mkdir()
    shutil.copy(made / "set.safetensors", tmp_path / "run/synthetic.safetensors")
    (judged,) = load_judged(tmp_path / "run", None, {}, {})
    assert (judged.name, judged.config.network.width) == (str(tmp_path / "run"), 4)
    without_provenance(made / "set.safetensors", tmp_path / "run/synthetic.safetensors")
    (judged,) = load_judged(tmp_path / "run", None, {"data": "digits"}, {})
    assert judged.config == distill.resolve(data="digits", ipc=1)


def test_data_that_have_no_name_here(made, tmp_path):
    synthetic = SyntheticSet.load(made / "set.safetensors")
    tensors, header = load_tensors(made / "set.safetensors")
    header["provenance"]["data"] = "mine"
    save_tensors(tmp_path / "mine.safetensors", tensors, header)
    with pytest.raises(ValueError, match="is of 'mine', which is no data set and no folder here"):
        load_judged(tmp_path / "mine.safetensors", None, {}, {})
    (judged,) = load_judged(tmp_path / "mine.safetensors", None, {"data": "digits"}, {})
    assert (judged.config.data, judged.config.network.width) == ("digits", 4)
    assert torch.equal(judged.synthetic.image_syn, synthetic.image_syn)
