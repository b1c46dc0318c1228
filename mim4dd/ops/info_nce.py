"""InfoNCE: public function and checks."""

from torch import Tensor

from mim4dd._checks import Backend, Reduction
from mim4dd.ops._contrastive import (
    Features,
    as_layers,
    as_logit_scale,
    check_hardness,
    evaluate,
    masked,
    positives_of,
)
from mim4dd.ops._exclusion import excluded_keys
from mim4dd.ops._negatives import against_negatives
from mim4dd.reference import Critic, Kind

__all__ = ["info_nce"]


def info_nce(
    query: Features,  # (N, D)
    key: Features,  # (M, D)
    *,
    positive_index: Tensor | None = None,  # (N,)
    labels: Tensor | None = None,  # (N,)
    key_labels: Tensor | None = None,  # (M,)
    query_mask: Tensor | None = None,  # (N,)
    key_mask: Tensor | None = None,  # (M,)
    exclude_self: bool = False,
    self_index: Tensor | None = None,  # (N,)
    exclude_index: Tensor | None = None,  # (N, K)
    decoupled: bool = False,
    hardness: float = 0.0,
    temperature: Tensor | float = 0.1,
    logit_scale: Tensor | float | None = None,
    reduction: Reduction = "mean",
    normalize: bool = False,
    negative_keys: Tensor | None = None,  # (M, D) or (N, M, D)
    negative_mask: Tensor | None = None,  # (M,) or (N, M)
    backend: Backend = None,
) -> Tensor:
    r"""InfoNCE loss of each query against its positive key among all keys.

    .. math::
        \ell_i = \log \sum_{j \in A(i)} e^{s_{ij}} - \frac{1}{|P(i)|} \sum_{p \in P(i)} s_{ip},
        \qquad s_{ij} = q_i^\top k_j / \tau

    The positives P(i) are named by index, or by class: with ``labels`` and ``key_labels``,
    :math:`P(i) = \{j \in A(i) : y_i = y_j\}`. A(i) is every key that is not masked, positives
    included, so that :math:`\log M - \ell` is a lower bound on the mutual information.

    The (N, M) logits are never stored: they exist one tile at a time, and so do their gradients, of
    first and second order. Half precision is summed in float32. The same inputs give the same bits,
    on the same number of threads. A query without a positive is left out of mean and sum; its own
    entry is 0.

    Args:
        query: Queries, floating point: (N, D); or several layers at once, (L, N, D) or a sequence
            of (N, D) whose D may differ. The results then have a leading axis L.
        key: Keys, in dtype and on device of ``query``. (M, D), or layers likewise. Under autocast
            dtypes may differ, but for float64: the widest is taken, and each gradient is in its
            input's own.
        positive_index: Index into ``key`` of each query's positive, -1 to ignore the query; default
            ``arange(N)``. (N,)
        labels: Class of each query, with ``key_labels``, instead of ``positive_index``; -1 to
            ignore it. (N,)
        key_labels: Class of each key; -1 to ignore it. (M,)
        query_mask: False for queries to ignore; what is ignored may hold anything. (N,), bool
        key_mask: False for keys to ignore. (M,), bool
        exclude_self: Keys are the queries: leave out key i of query i.
        self_index: Where they are among the keys: which key is query i itself, to leave out; -1 for
            none. (N,), integer
        exclude_index: Keys that query i leaves out, such as false negatives, padded with -1: each
            costs a comparison per pair on a GPU. (N, K), integer
        decoupled: Leave the positives out of the denominator (Yeh et al., arXiv:2110.06848).
        hardness: α ≥ 0 weighs every negative by exp(α q·k), without a gradient through that. A
            constant of compiled code, which is made anew for each value; the temperature is not.
        temperature: Softmax temperature τ > 0; a tensor, () or (1,), receives a gradient.
        logit_scale: 1/τ in place of ``temperature``, as CLIP learns it; likewise.
        reduction: ``"mean"`` or ``"sum"`` over the queries that have a positive, or ``"none"``.
        normalize: Scale every row of both sides to unit length first.
        negative_keys: Negatives to use in place of the other keys: then key i is the positive of
            query i alone, and the denominator holds it and these, which all queries share (M, D) or
            each has for itself (N, M, D). Options that say which keys count are refused beside it.
        negative_mask: False for negatives to ignore, such as padding, which may hold anything; a
            query without any has the loss 0. (M,), or (N, M) for (N, M, D), bool
        backend: None runs the kernel registered for the device of ``query``; ``"reference"`` the
            plain PyTorch definition, which stores the logits.

    Returns:
        Loss in nats, float32 or wider: a scalar, or (N,) for ``reduction="none"``. NaN, never a
        finite number, if a feature that takes part is NaN or infinite.

    Raises:
        ValueError: On a shape, device, index or value that the formula does not cover. On a GPU and
            under torch.compile nothing looks at values: a temperature that is not positive, or no
            query with a positive, gives NaN; an index out of range fails a device-side assertion.
        TypeError: On a dtype that it does not cover.
        RuntimeError: For a third derivative; ``backend="reference"`` has it.

    Example:
        >>> import torch, mim4dd
        >>> features = torch.eye(3)
        >>> mim4dd.info_nce(features, features, temperature=1.0)
        tensor(0.5514)

    References:
        van den Oord, Li, Vinyals. Representation Learning with Contrastive Predictive Coding.
        arXiv:1807.03748, eq. 4. With labels: Khosla et al., arXiv:2004.11362, eq. 2 (L_out).
        ``hardness``: Robinson et al., arXiv:2010.04592, in the form of sentence-transformers.
    """
    layers = as_layers(query, key)
    if negative_keys is not None:
        others = {
            "positive_index": positive_index is not None,
            "labels": labels is not None,
            "key_labels": key_labels is not None,
            "query_mask": query_mask is not None,
            "key_mask": key_mask is not None,
            "exclude_self": exclude_self,
            "self_index": self_index is not None,
            "exclude_index": exclude_index is not None,
            "decoupled": decoupled,
            "hardness": hardness != 0,
        }
        if given := [name for name, is_given in others.items() if is_given]:
            raise ValueError(f"negative_keys excludes {', '.join(given)}: it names all negatives")
        scale = as_logit_scale(layers, temperature, logit_scale)
        return against_negatives(
            layers, negative_keys, negative_mask, scale, reduction, normalize, backend
        )
    if negative_mask is not None:
        raise ValueError("negative_mask says which negative_keys to ignore, and none are given")
    positives = positives_of(layers, positive_index, labels, key_labels)
    check_hardness(hardness)
    loss, _ = evaluate(
        layers,
        masked(layers, positives, query_mask, key_mask),
        as_logit_scale(layers, temperature, logit_scale),
        None,
        Critic(Kind.OUT, decoupled, float(hardness), normalize),
        reduction,
        backend,
        excluded_keys(layers, exclude_self, self_index, exclude_index),
    )
    return loss
