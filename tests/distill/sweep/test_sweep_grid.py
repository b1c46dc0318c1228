"""Which settings a sweep runs: how values are typed, combined, named and refused."""

import re

import pytest

from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.sweep.grid import base_of, make_grid, parse_vary, shown
from mim4dd.distill.sweep.space import Range, parse_space


def names(*arguments):
    return [setting.name for setting in make_grid(*arguments)]


def test_values_have_the_type_of_their_option():
    varied = parse_vary(
        [
            "weight=0, 0.5,1e-3",
            "ipc=1,10",
            "zca=true,false",
            "critic=info_nce,nce",
            "projection=none,32",
            "--syn-steps=3",
            "layers=none|blocks.0|blocks.0,blocks.1",
        ]
    )
    assert varied == {
        "weight": [0.0, 0.5, 0.001],
        "ipc": [1, 10],
        "zca": [True, False],
        "critic": ["info_nce", "nce"],
        "projection": [None, 32],
        "syn_steps": [3],
        "layers": [None, "blocks.0", "blocks.0,blocks.1"],
    }
    for values in varied.values():
        assert len({type(value) for value in values} - {type(None)}) == 1


def test_values_are_shown_as_they_are_typed():
    for text in ("weight=0.003", "weight=0", "layers=none", "zca=true", "critic=nce", "ipc=10"):
        ((name, (value,)),) = parse_vary([text]).items()
        assert f"{name}={shown(value)}" == text


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "vary must name at least one option"),
        (["weight"], "vary must be name=value,value,…, got 'weight'"),
        (["weight="], "vary must be name=value"),
        (["weight=1,,2"], "vary must be name=value"),
        (["wait=1"], "vary must name an option, got 'wait'; there are: add_on, aligned_maps, "),
        (["seed=1,2"], "vary must not name seed"),
        (["weight=1", "weight=2"], "vary must name an option once, got weight twice"),
        (["weight=heavy"], "vary: weight must be of type float or int, got 'heavy'"),
        (["ipc=1.5"], "vary: ipc must be of type int, got '1.5'"),
        (["ipc=none"], "vary: ipc must be of type int, got 'none'"),
        (["zca=yes"], "vary: zca must be of type bool, got 'yes'"),
        (["critic=infonce"], "vary: critic must be one of 'info_nce', 'nce'"),
    ],
)
def test_what_cannot_be_read_is_refused(texts, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        parse_vary(texts)


def test_all_combinations_or_one_at_a_time():
    varied = {"weight": [0.0, 0.1], "temperature": [0.1, 0.2]}
    assert names({}, varied, False) == [
        "weight=0",
        "weight=0,temperature=0.2",
        "base",
        "temperature=0.2",
    ]
    assert names({}, varied, True) == ["base", "weight=0", "temperature=0.2"]
    assert names({"weight": 0.0}, varied, True) == ["base", "weight=0.1", "temperature=0.2"]
    # A base that is no combination is run too: the others are compared with it.
    settings = make_grid({"weight": 3.0}, varied, False)
    assert [setting.name for setting in settings][:2] == ["base", "weight=0"]
    assert len(settings) == 5
    assert base_of(settings).options == {"weight": 3.0, "temperature": 0.1}
    assert settings[1].config.add_on.temperature == 0.1
    assert settings[1].config.add_on.weight == 0.0


def test_bad_settings_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="given names unknown options: wait"):
        make_grid({"wait": 1.0}, {"weight": [1.0]}, True)
    with pytest.raises(ValueError, match="given: ipc must be of type int, got 'one'"):
        make_grid({"ipc": "one"}, {"weight": [1.0]}, True)
    with pytest.raises(ValueError, match="temperature must be positive"):
        make_grid({}, {"temperature": [0.1, 0.0]}, True)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"experts": "somewhere"}, "num_experts"),
        ({"method": "dm"}, "num_experts"),
        ({"weight": 0.0}, "temperature"),
        ({"network": "lenet"}, "width"),
        ({"network": "mlp"}, "depth"),
    ],
)
def test_an_option_without_effect_is_refused_and_beside_one_with_it_is_not(given, name):
    (option,) = given
    with pytest.raises(ValueError, match=f"vary: {name} has no effect on any setting"):
        make_grid(given, {name: [1, 2]}, True)
    with pytest.raises(ValueError, match=f"vary: {name} has no effect on any setting"):
        make_grid({}, {option: [given[option]], name: [1, 2]}, False)[1]
    others = {"experts": "", "method": "mtt", "weight": 0.1, "network": "convnet"}
    both = {option: [others[option], given[option]], name: [1, 2]}
    assert len(make_grid({}, both, False)) >= 3


def test_no_norm_and_no_pooling_can_be_asked_for():
    varied = parse_vary(["norm=instance,none", "pooling=none,avg"])
    assert varied == {"norm": ["instance", "none"], "pooling": ["none", "avg"]}
    settings = make_grid({}, varied, False)
    # What a network has by default is told by its name, and typed makes no other setting.
    assert [setting.options for setting in settings if setting.is_base] == [
        {"norm": "instance", "pooling": "avg"}
    ]
    assert len(settings) == 4
    assert "norm=none" in [setting.name for setting in settings]
    assert len({setting.config.network_title for setting in settings}) == 4


@pytest.mark.parametrize(
    ("data", "method", "ipc", "epochs"),
    [("cifar10", "mtt", 1, 50), ("cifar10", "mtt", 50, 50), ("cifar100", "datm", 50, 100)],
)
def test_experts_are_of_the_network_and_long_enough(data, method, ipc, epochs):
    """By presets, which have whitened images at some ipc alone, and longer ones for DATM."""
    base, other = make_grid({"data": data, "method": method, "ipc": ipc}, {"weight": [0.0]}, True)
    for setting in (base, other):
        assert setting.experts.network_title == setting.config.network_title
        assert setting.experts.train_epochs == epochs
    (base, _) = make_grid({"train_epochs": 7, "method": "datm"}, {"weight": [0.0]}, True)
    assert base.experts.train_epochs == 7


def test_defaults_are_those_of_the_setting():
    one, ten = make_grid({"data": "cifar10", "method": "mtt"}, {"ipc": [1, 10]}, False)
    for setting, ipc in ((one, 1), (ten, 10)):
        alone = DistillConfig.preset({"data": "cifar10", "method": "mtt", "ipc": ipc})
        assert alone["zca"]  # there is something to see
        compared = set(alone) - {"eval_every"}  # curves would cost time
        options = setting.config.options()
        assert all(options[name] == alone[name] for name in compared)
    assert one.config.method.syn_steps != ten.config.method.syn_steps
    (typed, _) = make_grid({"data": "cifar10", "syn_steps": 7}, {"ipc": [1, 10]}, False)
    assert typed.config.method.syn_steps == 7
    assert typed.config.eval_every == 0


def test_given_options_go_to_the_methods_that_have_them():
    given = {"method": "datm", "expansion_end": 30, "syn_steps": 7}
    mtt, datm, dm = make_grid(given, {"method": ["mtt", "datm", "dm"]}, False)
    assert datm.is_base
    assert (datm.config.method.expansion_end, datm.config.method.syn_steps) == (30, 7)
    assert mtt.config.method.syn_steps == 7
    assert not {"expansion_end", "lr_y"} & mtt.config.options().keys()
    assert not {"expansion_end", "syn_steps", "experts"} & dm.config.options().keys()
    # What is varied itself is never left aside: it would be a row that says what is not so.
    with pytest.raises(ValueError, match="syn_steps has no effect on method 'dm'"):
        make_grid({}, {"method": ["mtt", "dm"], "syn_steps": [5]}, False)
    with pytest.raises(ValueError, match="lr_lr has no effect on method 'dm'"):
        make_grid({}, {"method": ["mtt", "dm"], "lr_lr": [0.1]}, False)
    with pytest.raises(ValueError, match="lr_y has no effect on method 'mtt'"):
        make_grid({}, {"lr_y": [0.1]}, False)
    with pytest.raises(ValueError, match="expansion_end has no effect on method 'mtt'"):
        make_grid({"method": "mtt"}, {"expansion_end": [5]}, True)


def test_settings_of_one_network_and_data_share_experts():
    varied = {"lr_teacher": [0.01], "dsa_strategy": ["crop"], "weight": [0.3], "ipc": [2]}
    settings = make_grid({"dsa_strategy": "flip"}, varied, True)
    assert len(settings) == 5
    assert {setting.experts for setting in settings} == {settings[0].experts}
    assert settings[0].experts.dsa_strategy == "flip"
    assert "crop" in {setting.config.method.dsa_strategy for setting in settings}
    for own in ({"width": [4]}, {"num_experts": [3]}, {"lr_expert": [1.0]}, {"data": ["pets"]}):
        first, second = make_grid({}, own, True)
        assert first.experts != second.experts


def test_every_setting_has_a_folder_of_its_own():
    varied = {
        "data": ["digits", "a/b", "a b", "a_b"],
        "layers": [None, "blocks.0", ",".join(f"blocks.{index}" for index in range(30))],
    }
    settings = make_grid({}, varied, False)
    folders = [setting.folder for setting in settings]
    assert len(set(folders)) == len(folders) == 12
    assert all("/" not in folder and len(folder) < 150 for folder in folders)
    assert "layers=blocks.0" in folders


def test_spaces():
    assert parse_space(["weight=0.01..1:log", "num_keys=5..50", "critic=nce,info_nce"]) == {
        "weight": Range(0.01, 1.0, log=True),
        "num_keys": Range(5, 50, log=False),
        "critic": ["nce", "info_nce"],
    }
    assert 0.1 in Range(0.01, 1.0, log=True)
    assert 2 not in Range(0.01, 1.0, log=True)
    for text, message in (
        ("weight=1..0.1", "must range from a number to a larger one"),
        ("weight=0..1:log", "must be above 0 for a logarithmic scale"),
        ("weight=0..1:exp", "the scale of weight must be log or left out"),
        ("num_keys=0.5..3", "num_keys must be of type int, got '0.5'"),
        ("critic=a..b", "critic must be one of"),
        ("layers=a..b", "layers must be a number to have a range"),
        ("weight=", "vary must be name=low..high"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_space([text])
