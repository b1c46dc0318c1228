"""InfoNCE: public function and checks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mim4dd import reference
from mim4dd._checks import (
    Backend,
    Reduction,
    check_choice,
    check_floating,
    check_matching,
    check_same_device,
    check_tensor,
    mix_under_autocast,
    promoted,
)
from mim4dd.ops.contrastive import evaluate, reduce_all
from mim4dd.ops.contrastive.inputs import (
    Features,
    Sides,
    as_logit_scale,
    as_sides,
    check_hardness,
    excluded_keys,
    masked,
    positives_of,
)
from mim4dd.ops.contrastive.ranks import Group
from mim4dd.ops.log_sum_exp import log_sum_exp_of
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
    group: Group | None = None,
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
        group: Processes whose keys count too: a process group, or :class:`mim4dd.Ranks`. Queries
            stay on their rank, and indices name keys of it. A mean or sum is over the queries of
            all ranks, and every rank returns it; see docs/distributed.md.
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
    sides = as_sides(query, key, group)
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
            "group": group is not None,
        }
        if given := [name for name, is_given in others.items() if is_given]:
            raise ValueError(f"negative_keys excludes {', '.join(given)}: it names all negatives")
        scale = as_logit_scale(sides, temperature, logit_scale)
        return _against_negatives(
            sides, negative_keys, negative_mask, scale, reduction, normalize, backend
        )
    if negative_mask is not None:
        raise ValueError("negative_mask says which negative_keys to ignore, and none are given")
    positives = positives_of(sides, positive_index, labels, key_labels)
    check_hardness(hardness)
    loss, _ = evaluate(
        sides,
        masked(sides, positives, query_mask, key_mask),
        as_logit_scale(sides, temperature, logit_scale),
        None,
        Critic(Kind.OUT, decoupled, float(hardness), normalize),
        reduction,
        backend,
        excluded_keys(sides, exclude_self, self_index, exclude_index),
    )
    return sides.shaped(loss)


def _against_negatives(
    sides: Sides,  # one of queries (N, D) and positives (N, D)
    negative_keys: Tensor,  # (M, D) or (N, M, D)
    negative_mask: Tensor | None,  # (M,) or (N, M)
    logit_scale: Tensor,  # ()
    reduction: Reduction,
    normalize: bool,
    backend: Backend,
) -> Tensor:
    """−log σ(the positive's logit − lse of the negatives): exact also where p is 1."""
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if not sides.single or sides.num_queries != sides.num_keys:
        raise ValueError(
            "with negative_keys, query and key must both be (N, D), key i being the positive of "
            f"query i: got {sides.num_queries} queries and {sides.num_keys} keys"
        )
    query, key = sides.query[0], sides.key[0]
    check_floating("negative_keys", negative_keys)
    if mix_under_autocast(query, negative_keys):
        check_same_device("query", query, "negative_keys", negative_keys)
        query, key, negative_keys = promoted(query, key, negative_keys)
    else:
        check_matching("query", query, "negative_keys", negative_keys)
    paired = negative_keys.dim() == 3
    allowed = query.shape if paired else query.shape[1:]
    given = (
        (*negative_keys.shape[:1], *negative_keys.shape[2:]) if paired else negative_keys.shape[1:]
    )
    if negative_keys.dim() not in (2, 3) or given != allowed or 0 in negative_keys.shape:
        raise ValueError(
            f"negative_keys must be (M, D) or (N, M, D), with query (N, D) {tuple(query.shape)}, "
            f"got {tuple(negative_keys.shape)}"
        )
    if negative_mask is not None:
        _check_mask(negative_mask, negative_keys)

    def rows(features: Tensor) -> Tensor:
        return reference.unit_rows(features)[0] if normalize else features.to(sides.dtype)

    with torch.autocast(query.device.type, enabled=False):
        wide_query = rows(query)
        positive = logit_scale * (wide_query * rows(key)).sum(1)
        if paired:
            # Of size 1/D of the negatives themselves: nothing to fuse.
            if negative_mask is not None:  # what is masked may hold anything
                negative_keys = negative_keys.where(negative_mask[..., None], 0)
            logits = logit_scale * torch.einsum("nd,nmd->nm", wide_query, rows(negative_keys))
            logits = logits.masked_fill(~logits.isfinite(), math.nan)
            if negative_mask is None:
                lse = logits.logsumexp(1)
            else:
                lse = reference.log_sum_exp(logits, negative_mask)
        else:
            negatives = Sides.of([query], [negative_keys], single=True)
            lse = log_sum_exp_of(negatives, logit_scale, negative_mask, None, normalize, backend)
    # Not softplus, which PyTorch replaces by its asymptote from 20 on.
    loss = -F.logsigmoid(positive.masked_fill(~positive.isfinite(), math.nan) - lse)
    return reduce_all(loss, reduction)


def _check_mask(negative_mask: Tensor, negative_keys: Tensor) -> None:
    check_tensor("negative_mask", negative_mask)
    if negative_mask.dtype != torch.bool:
        raise TypeError(f"negative_mask must have dtype torch.bool, got {negative_mask.dtype}")
    check_same_device("negative_mask", negative_mask, "negative_keys", negative_keys)
    if negative_mask.shape != negative_keys.shape[:-1]:
        raise ValueError(
            "negative_mask must hold one entry per row of negative_keys "
            f"{tuple(negative_keys.shape)}, got shape {tuple(negative_mask.shape)}"
        )
