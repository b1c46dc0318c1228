"""Tensors of any shape, dtype and strides for hypothesis, and what examples are run."""

import os

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ["DTYPES", "LAYOUTS", "SIZES", "drawn", "examples", "seeds"]

# One, primes, and powers of two with their neighbours: where tiles, vectors and threads end.
SIZES = st.sampled_from([1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 97, 127, 129])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
LAYOUTS = st.sampled_from(["contiguous", "transposed", "offset", "flipped", "stepped", "expanded"])
seeds = st.integers(0, 2**31 - 1)


def examples(number: int):
    """So many examples, always the same ones; with MIM4DD_EXAMPLES as many others, at random.

    Without a time limit: the first call of an op compiles or loads what others find there.
    """
    asked = os.environ.get("MIM4DD_EXAMPLES")
    return settings(
        max_examples=number if asked is None else int(asked),
        derandomize=asked is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def drawn(shape, dtype, layout, generator, scale=1.0):
    """Normal numbers (…) in some layout; expanded along its first axis, if it has one of them."""
    values = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    if layout == "expanded":
        values = values[:1].expand(shape)
        return values[:1].to(dtype).expand(shape)
    values = values.to(dtype)
    if layout == "transposed" and len(shape) > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "offset":
        room = torch.full((values.numel() + 3,), torch.nan, dtype=dtype)
        room[3:] = values.flatten()
        return room[3:].view(shape)
    if layout == "flipped":
        return values.flip(0).contiguous().flip(0)
    if layout == "stepped":
        room = torch.full((*shape[:-1], 2 * shape[-1]), torch.nan, dtype=dtype)
        room[..., ::2] = values
        return room[..., ::2]
    return values
