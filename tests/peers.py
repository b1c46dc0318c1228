"""Importing other libraries, whether torchvision is there or not."""

import importlib
import importlib.util
import sys


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
