"""The engine of :mod:`mim4dd.unroll`: one file per concern, none of them public."""
