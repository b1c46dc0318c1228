"""Tiles of rows, and their products."""

import triton
import triton.language as tl


@triton.jit
def load_tile(ptr, offs, mask, stride, offs_d, D, INTERPRETED: tl.constexpr):
    """Rows ``offs`` and columns ``offs_d``, 0 where masked."""
    pointers = ptr + offs[:, None] * stride + offs_d[None, :]
    tile = tl.load(pointers, mask=mask[:, None] & (offs_d < D)[None, :], other=0.0)
    if INTERPRETED and ptr.dtype.element_ty == tl.bfloat16:
        tile = tile.to(tl.float32)  # the interpreter multiplies bit patterns (triton#11584)
    return tile


@triton.jit
def multiply_rows(
    own_ptr,
    offs_own,
    mask_own,
    stride_own,
    stream_ptr,
    offs_stream,
    mask_stream,
    stride_stream,
    D,
    BLOCK_OWN: tl.constexpr,
    BLOCK_STREAM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    dtype: tl.constexpr,
):
    """All products of own and streamed rows, a few columns at a time."""
    products = tl.zeros((BLOCK_OWN, BLOCK_STREAM), dtype)
    for start_k in range(0, D, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K).to(tl.int64)
        own = load_tile(own_ptr, offs_own, mask_own, stride_own, offs_k, D, INTERPRETED)
        stream = load_tile(
            stream_ptr, offs_stream, mask_stream, stride_stream, offs_k, D, INTERPRETED
        )
        products = tl.dot(
            own, tl.trans(stream), products, input_precision=PRECISION, out_dtype=dtype
        )
    return products
