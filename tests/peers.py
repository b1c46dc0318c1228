"""The libraries that mim4dd.adapters stands in for."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def peer(name, past=()):
    """Import a module of a peer, past those of its packages whose own code needs torchvision."""
    library = name.partition(".")[0]
    spec = importlib.util.find_spec(library)
    if spec is None:
        raise ModuleNotFoundError(
            f"the adapter tests compare with {library}, which is not installed: "
            "pip install --no-deps -r tests/peers.txt"
        )
    for package in past:
        sys.modules[package] = module = ModuleType(package)
        module.__path__ = [str(Path(spec.submodule_search_locations[0], *package.split(".")[1:]))]
    return importlib.import_module(name)


info_nce = peer("info_nce")
losses = peer("pytorch_metric_learning.losses")
open_clip = peer("open_clip.loss", past=["open_clip"])
_MODELS = ["lightly.models", "lightly.models.modules", "lightly.models.utils"]
lightly = peer("lightly.loss.ntx_ent_loss", past=["lightly.loss", *_MODELS])
