"""What mim4dd 0.1 left: its flat options of all methods are read or refused, its classes known."""

import pytest

from mim4dd.distill.config.commands import DistillConfig
from mim4dd.distill.identity.describe import describe, differences
from mim4dd.distill.training.augment import Augmentation

# As a run of DM on digits noted them, those of the other methods included.
OPTIONS = {
    "num_eval": 1, "eval_epochs": 2, "eval_batch": 256, "eval_dsa_strategy": "crop_scale_rotate",
    "eval_seed": 0, "ipc": 1, "iterations": 3, "optimizer_img": "sgd", "lr_img": 1.0,
    "lr_lr": 0.0001, "lr_y": 2.0, "lr_teacher": 0.03, "positive_syn_lr": False, "init": "real",
    "ema_decay": 0.0, "seed": 0, "checkpoint_every": 1, "eval_every": 0, "weight": 0.1,
    "temperature": 0.1, "critic": "info_nce", "layer_decay": 0.5, "layers": None,
    "projection": None, "num_keys": 200, "dsa_strategy": "crop_scale_rotate", "syn_steps": 20,
    "batch_syn": None, "memory_budget": 1073741824, "num_networks": 1, "squeeze_epochs": 20,
    "squeeze_lr": 0.1, "squeeze_batch": 128, "r_bn": 0.05, "first_bn_multiplier": 10.0,
    "jitter": 4, "window": None, "inner_lr": 0.001, "batch_target": 1024, "batch_real": 64,
    "outer_loop": 1, "inner_loop": 1, "lr_net": 0.01, "aligned_maps": "pooled",
    "early_weight": 0.1, "last_weight": 2.0, "discrimination_weight": 0.01, "lambda_1": 0.04,
    "lambda_2": 0.03, "expert_epochs": 2, "max_start_epoch": 5, "min_start_epoch": 0,
    "initial_max_start_epoch": None, "expansion_end": 1000, "data": "digits", "data_path": "data",
    "image_size": None, "zca": False, "network": "convnet", "width": 8, "depth": 2, "norm": None,
    "pooling": None, "device": "cpu", "method": "dm", "experts": "runs/experts",
}  # fmt: skip


def test_options_of_other_methods_are_left_out():
    config = DistillConfig.of(**DistillConfig.read(OPTIONS, "config.json"))
    assert (config.method_name, config.method.batch_real) == ("dm", 64)
    assert (config.network.width, config.network.norm) == (8, "instance")
    options = config.options()
    assert not {"syn_steps", "lr_lr", "experts"} & options.keys()
    kept = {name: value for name, value in OPTIONS.items() if name in options}
    assert options == kept | {
        "add_on": "mim4dd", "norm": "instance", "pooling": "avg", "keep_every": 0,
        "ipc_by_class": None,
        "keep_bytes": False, "weight_decay_img": 0.0, "patience_img": 0, "clip_img": False,
        "beta1_img": 0.9, "beta2_img": 0.999, "cosine_img": False, "stream": False,
        "precision": "float32", "download": False,
    }  # fmt: skip
    # Comparisons and sweeps named experts for every method.
    assert "experts" not in DistillConfig.read(OPTIONS | {"experts": "out/experts"}, "config.json")
    alexnet = DistillConfig.read(OPTIONS | {"network": "alexnet"}, "config.json")
    assert "width" not in alexnet  # AlexNet has its own, and had


def test_options_that_counted_for_something_are_not_dropped_in_silence():
    for changes, message in (
        ({"syn_steps": 7}, "syn_steps has no effect on method 'dm'"),
        ({"lr_y": 1.0}, "lr_y has no effect on method 'dm'"),
        ({"speed": 1}, "config.json names unknown options: speed"),
        ({"method": "elsewhere"}, "method must be one of 'at_bptt', .*, 'tesla', got 'elsewhere'"),
    ):
        with pytest.raises(ValueError, match=message):
            DistillConfig.read(OPTIONS | changes, "config.json")


def test_classes_are_known_by_the_modules_that_they_were_in():
    now = describe(Augmentation("crop"))
    before = {**now, "class": "mim4dd.distill.augment.DSA"}
    assert differences(before, now) == []
    before = {"class": "mim4dd.distill.mutual_information.MIM4DD"}
    assert differences(before, {"class": "mim4dd.MIM4DD"}) == []
    # Another class is another one still, and so is one of the same name elsewhere.
    assert differences({"class": "mim4dd.distill.methods.dsa.DSA"}, {"class": "mim4dd.DC"})
    assert differences({"class": "mine.MIM4DD"}, {"class": "mim4dd.MIM4DD"})
