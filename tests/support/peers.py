"""Importing other libraries, whether torchvision is there or not."""

import importlib
import importlib.util
import sys
from types import SimpleNamespace


def peer(name, past=()):
    """Import a module of a peer, past those of its packages whose own code needs torchvision."""
    library = name.partition(".")[0]
    if importlib.util.find_spec(library) is None:
        raise ModuleNotFoundError(
            f"{library} is not installed: pip install --no-deps -r bench/peers.txt"
        )
    for package in past:
        if package not in sys.modules:
            # Known by name and place, its own code not run.
            spec = importlib.util.find_spec(package)
            sys.modules[package] = importlib.util.module_from_spec(spec)
    return importlib.import_module(name)


# Past the packages whose own code needs torchvision.
_LIGHTLY = ["lightly.loss", "lightly.models", "lightly.models.modules", "lightly.models.utils"]


def adapted_peers():
    """By the name of the adapter, what can be imported from the library it stands in for."""
    losses = peer("pytorch_metric_learning.losses")
    distributed = peer("pytorch_metric_learning.utils.distributed")
    return {
        "info_nce_pytorch": peer("info_nce"),
        "lightly": peer("lightly.loss.ntx_ent_loss", past=_LIGHTLY),
        "open_clip": peer("open_clip.loss", past=["open_clip"]),
        "pytorch_metric_learning": SimpleNamespace(**vars(losses) | vars(distributed)),
    }
