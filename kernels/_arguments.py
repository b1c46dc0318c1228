"""What travels together to the contrastive kernels."""

from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """Rows as they are multiplied, of all layers behind one another."""

    query: Tensor  # layers of (N, D)
    key: Tensor  # layers of (M, D)


class Norms(NamedTuple):
    """What makes unit rows of queries and of keys; None where they are compared as they are."""

    query: Tensor | None  # (L, N)
    key: Tensor | None  # (L, M)


class Pairs(NamedTuple):
    """Which pairs take part, and which of those are positive."""

    labels: Tensor  # (N,)
    key_labels: Tensor | None  # (M,)
    excluded: Tensor | None  # (K, N), rows apart by stride_excluded and as long as tiles ask for
    num_queries: int  # N
    num_keys: int  # M
    stride_excluded: int
    num_excluded: int  # K


class Groups(NamedTuple):
    """Rows sorted by label, so that a query's positives are side by side; None where they are not.

    What takes no part lies behind all others. Numbers are int32 but for the orders.
    """

    query_order: Tensor | None  # (N,) int64: where each lies in the caller's order
    key_order: Tensor | None  # (M,) int64
    begin: Tensor | None  # (N,): first key of the query's label
    end: Tensor | None  # (N,): past the last
    first: Tensor | None  # (M,): first query of the key's label
    last: Tensor | None  # (M,): past the last
    counts: Tensor | None  # (2,): queries and keys that take part


class Scales(NamedTuple):
    """What makes logits of similarities."""

    scale: Tensor  # ()
    raised: Tensor  # (): scale of the negatives
    bias: Tensor | None  # () or (N,)
    stride_bias: int


class Losses(NamedTuple):
    """What the forward finds; loss and lse None where only the gradients' part is wanted."""

    loss: Tensor | None  # (L, N)
    lse: Tensor | None  # (L, N)
    positives: Tensor | None  # (L, 2, N): lse of the positives ("in"), share of the negatives


class Saved(NamedTuple):
    """What the gradients take from the forward; of one layer, (N,), in the chunked kernels."""

    weight: Tensor  # (N,)
    lse: Tensor  # (L, N)
    positives: Tensor | None  # as in Losses


class Upstream(NamedTuple):
    """Gradients of the losses and of lse, (L, N), or (N,) of one layer."""

    loss: Tensor | None
    lse: Tensor | None
    stride_loss: int  # from query to query
    stride_lse: int
    layer_loss: int  # from layer to layer
    layer_lse: int


class GradientParts(NamedTuple):
    """Parts of one side's gradient and of the scalars', by split; None where it is not wanted."""

    rows: Tensor | None  # (splits, layers of (N, D) or (M, D))
    scale: Tensor | None  # (splits, L, N or M)
    bias: Tensor | None  # (splits, L, N or M)


class Tangents(NamedTuple):
    """Along what the scalars change."""

    scale: Tensor  # ()
    bias: Tensor | None  # ()


class SecondDerivatives(NamedTuple):
    """Of the first gradients along tangents: by what each query has of its own."""

    grad_loss: Tensor  # (N,)
    grad_lse: Tensor  # (N,)
    scale: Tensor  # (N,): parts of the sum
    bias: Tensor  # (N,): parts of the sum


class Form(NamedTuple):
    """The critic that a kernel is compiled for."""

    KIND: str
    DECOUPLED: bool
    HARD: bool  # positives and negatives have scales of their own


class Tiling(NamedTuple):
    """The products that a kernel is compiled for."""

    RESIDENT: bool  # the own rows stay on chip, in all columns
    DIVISOR: int  # of columns and strides
    PRECISION: str
    INTERPRETED: bool
    BLOCK_OWN: int
    BLOCK_STREAM: int
    BLOCK_K: int
    BLOCK_D: int
