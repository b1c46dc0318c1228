"""Options in files: YAML says what JSON says, and nothing in it is run."""

import json
import sys

import pytest
from command_line import exit_status

from mim4dd import distill
from mim4dd.distill.config.commands import CompareConfig, DistillConfig, ExpertsConfig
from mim4dd.distill.config.file import read_config
from mim4dd.distill.methods import METHODS
from mim4dd.distill.runs import RunDirectory

WORDS = "--width 4 --depth 1 --num-eval 1 --eval-epochs 1 --eval-every 0"
yaml = pytest.importorskip("yaml")


@pytest.mark.parametrize("kind", [DistillConfig, CompareConfig, ExpertsConfig])
@pytest.mark.parametrize("suffix", ["json", "yaml", "yml"])
def test_options_come_back_from_either_form(kind, suffix, tmp_path):
    path = tmp_path / f"options.{suffix}"
    of_methods = [{"method": name} for name in METHODS] if issubclass(kind, DistillConfig) else [{}]
    for chosen in of_methods:
        config = kind.resolve(data="cifar10", seed=3, **chosen)
        dump = json.dumps if suffix == "json" else yaml.safe_dump
        path.write_text(dump(config.options()))
        assert read_config(path, kind) == config


def test_numbers_are_written_as_anywhere(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text(
        "method: dm  # a comment\nlr_img: 1e-4\nlr_teacher: 2.5E+1\nweight: 5e-1\nema_decay: .5\n"
    )
    config = read_config(path, DistillConfig)
    assert (config.lr_img, config.lr_teacher, config.add_on.weight) == (1e-4, 25.0, 0.5)
    assert config.ema_decay == 0.5
    path.write_text("data: '1e4'\n")
    assert read_config(path, DistillConfig).data == "1e4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- method\n- dm\n", "must hold a mapping of options, got list"),
        ("1: 2\n", "must hold a mapping of options, got dict"),
        ("", "must hold a mapping of options, got NoneType"),
        ("method: [dm\n", "is not readable as YAML: while parsing a flow sequence"),
        ("data: !!python/object/apply:os.getcwd []\n", "is not readable as YAML: could not"),
        ("iteration: 3\n", "names unknown options: iteration"),
        ("iterations: 2021-01-01\n", "iterations must be of type int, got datetime.date"),
    ],
)
def test_what_is_no_mapping_of_options_is_refused(text, message, tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(path, DistillConfig)


def test_the_command_takes_a_file_and_what_is_typed_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dm.yaml").write_text("method: dm\nbatch_real: 4\niterations: 9\nweight: 0.0\n")
    status = exit_status(*f"distill --config dm.yaml --iterations 2 {WORDS} --out run".split())
    assert status == 0
    found = RunDirectory("run").read_config()
    few = {"width": 4, "depth": 1, "num_eval": 1, "eval_epochs": 1, "eval_every": 0}
    expected = distill.resolve(method="dm", batch_real=4, iterations=2, weight=0.0, **few)
    assert found == expected.options()
    assert exit_status("distill", "--config", "none.yml") == "mim4dd: none.yml does not exist"


def test_without_pyyaml_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "options.yaml"
    path.write_text("method: dm\n")
    message = "yaml is missing; pip install 'mim4dd[yaml]' brings it"
    assert exit_status("distill", "--config", path) == f"mim4dd: {message}"
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mim4dd\[yaml\]' brings it"):
        read_config(path, DistillConfig)
