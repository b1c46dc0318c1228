"""Triton kernel of InfoNCE with label-defined positives.

Each program owns BLOCK_N queries and streams over the keys in tiles of BLOCK_M, keeping a running
maximum and sum (online softmax), so the (N, M) logits exist one tile at a time, in registers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mim4dd.kernels._ahead_of_time import POINTERS, Compilation


@triton.jit
def info_nce_kernel(
    query_ptr,  # (N, D)
    key_ptr,  # (M, D)
    labels_ptr,  # (N,) int64
    key_labels_ptr,  # (M,) int64
    temperature_ptr,  # ()
    loss_ptr,  # (N,)
    lse_ptr,  # (N,)
    N,
    M,
    D,
    stride_qn,
    stride_qd,
    stride_km,
    stride_kd,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Loss and log-sum-exp of BLOCK_N queries against all M keys."""
    LN_2: tl.constexpr = 0.6931471805599453
    LOG2_E: tl.constexpr = 1.4426950408889634
    acc_dtype: tl.constexpr = loss_ptr.dtype.element_ty

    # 64-bit, because rows times stride passes 2**31 long before memory runs out.
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    labels = tl.load(labels_ptr + offs_n, mask=mask_n, other=0)
    # The hardware exponentiates in base 2: scaling the logits once saves a multiply per exp.
    scale = LOG2_E / tl.load(temperature_ptr)

    row_max = tl.full((BLOCK_N,), float("-inf"), acc_dtype)
    row_sum = tl.zeros((BLOCK_N,), acc_dtype)
    positive_sum = tl.zeros((BLOCK_N,), acc_dtype)
    num_positives = tl.zeros((BLOCK_N,), tl.int32)

    for start_m in range(0, M, BLOCK_M):
        offs_m = start_m + tl.arange(0, BLOCK_M).to(tl.int64)
        mask_m = offs_m < M
        logits = tl.zeros((BLOCK_N, BLOCK_M), acc_dtype)
        for start_d in range(0, D, BLOCK_D):
            offs_d = start_d + tl.arange(0, BLOCK_D).to(tl.int64)
            mask_d = offs_d < D
            query = tl.load(
                query_ptr + offs_n[:, None] * stride_qn + offs_d[None, :] * stride_qd,
                mask=mask_n[:, None] & mask_d[None, :],
                other=0.0,
            )
            key = tl.load(
                key_ptr + offs_m[None, :] * stride_km + offs_d[:, None] * stride_kd,
                mask=mask_m[None, :] & mask_d[:, None],
                other=0.0,
            )
            if UPCAST:
                query, key = query.to(acc_dtype), key.to(acc_dtype)
            logits = tl.dot(query, key, logits, input_precision="ieee", out_dtype=acc_dtype)

        logits *= scale
        # exp2(-inf) = 0 would hide an infinite key behind a finite loss.
        logits = tl.where(tl.abs(logits) < float("inf"), logits, float("nan"))

        key_labels = tl.load(key_labels_ptr + offs_m, mask=mask_m, other=0)
        positive = (labels[:, None] == key_labels[None, :]) & mask_m[None, :]
        positive_sum += tl.sum(tl.where(positive, logits, 0.0), axis=1)
        num_positives += tl.sum(positive.to(tl.int32), axis=1)

        logits = tl.where(mask_m[None, :], logits, float("-inf"))
        new_max = tl.maximum(row_max, tl.max(logits, axis=1))
        row_sum = row_sum * tl.exp2(row_max - new_max)
        row_sum += tl.sum(tl.exp2(logits - new_max[:, None]), axis=1)
        row_max = new_max

    lse = (row_max + tl.log2(row_sum)) * LN_2
    mean_positive = positive_sum * LN_2 / tl.maximum(num_positives, 1).to(acc_dtype)
    # lse * 0 rather than 0, so that a NaN survives in a row that has no positive.
    loss = tl.where(num_positives > 0, lse - mean_positive, lse * 0)
    tl.store(loss_ptr + offs_n, loss, mask=mask_n)
    tl.store(lse_ptr + offs_n, lse, mask=mask_n)


class Tiles(NamedTuple):
    """Compile-time sizes and options of one launch."""

    BLOCK_N: int
    BLOCK_M: int
    BLOCK_D: int
    num_warps: int
    enable_fp_fusion: bool = True  # Triton 3.9 warns where it is left open, 3.10 turns it off


def tiles(dtype: torch.dtype) -> Tiles:
    """Tile sizes that spill no register on sm_80 to sm_100; not tuned on a GPU yet."""
    if dtype == torch.float64:
        return Tiles(BLOCK_N=32, BLOCK_M=32, BLOCK_D=16, num_warps=4)
    if dtype == torch.float32:  # IEEE products take their operands from registers
        return Tiles(BLOCK_N=32, BLOCK_M=64, BLOCK_D=16, num_warps=8)
    return Tiles(BLOCK_N=64, BLOCK_M=64, BLOCK_D=32, num_warps=8)


def info_nce(
    query: Tensor, key: Tensor, labels: Tensor, key_labels: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel. Returns loss and log-sum-exp, each (N,), float32 or wider."""
    (N, D), M = query.shape, key.shape[0]
    loss = query.new_empty(N, dtype=torch.promote_types(query.dtype, torch.float32))
    lse = torch.empty_like(loss)
    sizes = tiles(query.dtype)
    with torch.cuda.device_of(query):  # Triton launches on the current device, whatever the tensors
        info_nce_kernel[(triton.cdiv(N, sizes.BLOCK_N),)](
            query,
            key,
            labels.to(torch.int64).contiguous(),
            key_labels.to(torch.int64).contiguous(),
            temperature,
            loss,
            lse,
            N,
            M,
            D,
            *query.stride(),
            *key.stride(),
            **sizes._asdict(),
            # The interpreter multiplies the bit patterns of bfloat16 (triton#11584).
            UPCAST=query.device.type == "cpu",
        )
    return loss, lse


def compilations() -> Iterator[Compilation]:
    """Every dtype, with rows of stride 1 and of any stride."""
    for dtype, pointer in POINTERS.items():
        wide = POINTERS[torch.promote_types(dtype, torch.float32)]
        sizes = tiles(dtype)
        constants = {**sizes._asdict(), "UPCAST": False}
        options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
        for layout, stride in (("contiguous", {"stride_qd": 1, "stride_kd": 1}), ("strided", {})):
            yield Compilation(
                name=f"info_nce {dtype} {layout}".replace("torch.", ""),
                kernel=info_nce_kernel,
                signature={
                    "query_ptr": pointer,
                    "key_ptr": pointer,
                    "labels_ptr": "*i64",
                    "key_labels_ptr": "*i64",
                    "temperature_ptr": wide,
                    "loss_ptr": wide,
                    "lse_ptr": wide,
                    **dict.fromkeys(("N", "M", "D", "stride_qn", "stride_km"), "i32"),
                    **dict.fromkeys(("stride_qd", "stride_kd"), "i32"),
                },
                constants={**constants, **stride},
                options=options,
            )
