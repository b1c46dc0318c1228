"""The base methods: a module each, which registers itself."""

from mim4dd.distill.methods.registry import METHODS, MethodEntry, method

__all__ = ["METHODS", "MethodEntry", "method"]
