"""Distil scikit-learn's digits to one image per class by any method, and judge the ten images.

    python examples/distill_digits.py dm
    python examples/distill_digits.py mtt

Methods: mtt, tesla, datm, dc, dsa, cafe, dm, rat_bptt, at_bptt, sre2l, dwa, edc, rded, ncfm. The
first three match the parameters of experts, which are networks that were trained on the real
digits: the program trains them first. It takes about a minute.
"""

import sys
import tempfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mim4dd import distill
from mim4dd.distill.methods import METHODS

NOTHING: Mapping[str, Any] = MappingProxyType({})


def main(
    method: str = "dm",
    options: Mapping[str, Any] = NOTHING,
    training: Mapping[str, Any] = NOTHING,
    seeds: int = 3,
) -> tuple[float, float]:
    """Accuracy of networks trained on ten random digits, and on the ten distilled ones.

    Args:
        method: One of ``METHODS``.
        options: Options of :func:`mim4dd.distill.run` that differ from the defaults.
        training: Options of :func:`mim4dd.distill.train_experts`.
        seeds: Networks that judge each set.
    """
    with tempfile.TemporaryDirectory() as experts:
        if METHODS[method].needs_experts:
            distill.train_experts("digits", experts, **{"num_experts": 5, **training})
            options = {"experts": experts, **options}
        run = distill.run("digits", method=method, ipc=1, **options)
        table = run.evaluate(seeds=seeds)
    print(table)
    distilled = table["distilled"]["convnet"].mean
    return table["1 random real images per class"]["convnet"].mean, distilled


if __name__ == "__main__":
    main(*sys.argv[1:2])
