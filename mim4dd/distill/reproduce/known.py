"""The rows that there are, with where their figures stand."""

from collections.abc import Mapping, Sequence
from typing import Any

from mim4dd._checks import check_choice
from mim4dd.distill.reproduce.rows import Budget, PublishedRow

__all__ = ["ROWS", "chosen_rows"]

_DM = "Zhao, Bilen, arXiv:2110.04181, Table 1"
_DC = "Zhao et al., arXiv:2006.05929; readme of VICO-UoE/DatasetCondensation at 53f63a6, Table 1"
_DSA = "Zhao, Bilen, arXiv:2102.08259; readme of VICO-UoE/DatasetCondensation at 53f63a6, Table 2"
_MTT = "Cazenavette et al., arXiv:2203.11932, Table 1"
_NCFM = "Wang et al., arXiv:2502.20653, ConvNet-3; by its own evaluation (docs/methods.md)"
_NONE = "none that could be checked"

# Percent, by data, method and images per class.
_PUBLISHED: Mapping[tuple[str, str], tuple[str, dict[int, float]]] = {
    ("mnist", "dm"): (_DM, {1: 89.7, 10: 97.5, 50: 98.6}),
    ("mnist", "dc"): (_DC, {1: 91.7, 10: 97.4, 50: 98.8}),
    ("mnist", "dsa"): (_DSA, {1: 88.7, 10: 97.8, 50: 99.2}),
    ("cifar10", "dm"): (_DM, {1: 26.0, 10: 48.9, 50: 63.0}),
    ("cifar10", "dc"): (_DC, {1: 28.3, 10: 44.9, 50: 53.9}),
    ("cifar10", "dsa"): (_DSA, {1: 28.8, 10: 52.1, 50: 60.6}),
    ("cifar10", "mtt"): (_MTT, {1: 46.3, 10: 65.3, 50: 71.6}),
    ("cifar10", "ncfm"): (_NCFM, {1: 49.5, 10: 71.8, 50: 77.4}),
}
_WEIGHTS = (0.0, 0.1)

# How the authors judge, where it is not by the recipe of the data (docs/methods.md): DC without
# augmentation, but for MNIST, of whose rotation by up to 45 degrees a third is left.
_RECIPES: Mapping[tuple[str, str], dict[str, Any]] = {
    ("mnist", "dc"): {"eval_dsa_strategy": "crop_scale_rotate"},
    ("cifar10", "dc"): {"eval_dsa_strategy": "none", "eval_epochs": 300},
}
_NETWORKS = {"dm": 5, "dc": 20, "dsa": 20, "mtt": 5, "ncfm": 5}  # that judge a set; of 5 sets each

# On a core of a Zen 3 a network takes a minute for 100 epochs of 10 images per class. Fewer epochs
# cost accuracy: of 10 per class, 300 for 1000 epochs took 0.6 points of DM on MNIST.
_SMALL_NETWORKS: Mapping[int, dict[str, Any]] = {
    1: {"num_eval": 2},
    10: {"num_eval": 1},
    50: {"num_eval": 1, "eval_epochs": 300},
}
# An image's share of the gradient of a class mean is 1/ipc, and of its curvature too: steps so many
# times larger go as far, where few are taken.
_DM_STEPS = {"iterations": 150, "batch_real": 64}
_FEW_MATCHES = {"iterations": 100, "batch_real": 64}
# A fifth of the inner epochs with five times the step size takes the networks as far, for a fifth
# of the time (docs/reproduce has figures). Few steps of the images have to be longer.
_FAST_MATCHES = {
    "iterations": 200,
    "batch_real": 64,
    "inner_loop": 10,
    "lr_net": 0.05,
    "lr_img": 0.3,
}
_FEW_EXPERTS = {"num_experts": 5, "train_epochs": 6}
# Some networks, few epochs, a sample of every class; AdamW's steps are as much longer as fewer.
_NCFM_STEPS = {
    "num_pairs": 3,
    "squeeze_epochs": 6,
    "batch_real": 64,
    "num_frequencies": 1024,
    "lr_img": 0.1,
}
_SMALL: Mapping[str, dict[int, dict[str, Any]]] = {
    "dm": {1: _DM_STEPS, 10: {**_DM_STEPS, "lr_img": 10.0}, 50: {**_DM_STEPS, "lr_img": 50.0}},
    "dc": {1: {"batch_real": 64}, 10: _FEW_MATCHES, 50: _FEW_MATCHES},
    "dsa": {
        1: {"iterations": 500, "batch_real": 64},
        10: _FAST_MATCHES,
        50: _FEW_MATCHES,
    },
    "mtt": {
        1: {"iterations": 500, **_FEW_EXPERTS},
        10: {"iterations": 500, "max_start_epoch": 4, **_FEW_EXPERTS},
        50: {"iterations": 300, "max_start_epoch": 4, **_FEW_EXPERTS},
    },
    "ncfm": {
        1: {"iterations": 300, **_NCFM_STEPS},
        10: {"iterations": 200, **_NCFM_STEPS},
        50: {"iterations": 100, **_NCFM_STEPS},
    },
}


def _rows() -> list[PublishedRow]:
    # Seconds, to see that all works; nothing is published for these data.
    tiny = Budget(2, {"width": 8, "iterations": 20, "num_eval": 2, "eval_epochs": 20})
    found = [PublishedRow("digits", "dm", 1, 0.0, None, _NONE, tiny, Budget(5))]
    for (data, method), (source, by_ipc) in _PUBLISHED.items():
        for ipc, percent in by_ipc.items():
            small = {**_SMALL_NETWORKS[ipc], **_SMALL[method][ipc]}
            for weight in _WEIGHTS:
                alone = weight == 0
                found.append(
                    PublishedRow(
                        data,
                        method,
                        ipc,
                        weight,
                        round(percent / 100, 4) if alone else None,
                        source if alone else _NONE,
                        Budget(3, small),
                        Budget(5, {"num_eval": _NETWORKS[method]}),
                        _RECIPES.get((data, method), {}),
                    )
                )
    return found


ROWS = tuple(_rows())


def chosen_rows(names: Sequence[str]) -> list[PublishedRow]:
    """The rows by these names, or all where none is named, in the order of ``ROWS``.

    Raises:
        ValueError: If there is none by a name.

    Example:
        >>> from mim4dd.distill.reproduce.known import chosen_rows
        >>> [(row.data, row.published) for row in chosen_rows(["mnist-dm-ipc1-0"])]
        [('mnist', 0.897)]
    """
    for name in names:
        check_choice("row", name, tuple(row.name for row in ROWS))
    return [row for row in ROWS if not names or row.name in names]
