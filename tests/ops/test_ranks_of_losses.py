"""Losses over ranks: what one process makes of the concatenated batch."""

import pytest
import torch
import torch.distributed as dist
from on_ranks import on_ranks

import mim4dd
from mim4dd import Ranks, clip_loss, info_nce, log_sum_exp, nce, sup_con
from mim4dd.ops.contrastive import exchange, ranks

ROWS = {
    1: [(5, 7)],
    2: [(4, 6), (3, 5)],
    3: [(2, 6), (5, 5), (0, 3)],
    4: [(3, 3), (1, 4), (6, 6), (2, 0)],
}


def close(actual, expected, tolerance=1e-12):
    actual, expected = torch.as_tensor(actual).double(), expected.detach()
    size = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * size)


def batch(world):
    """Query, key, labels and key labels of all ranks, and where they are cut."""
    generator = torch.Generator().manual_seed(world)
    queries, keys = ([rows[side] for rows in ROWS[world]] for side in (0, 1))
    query, key = (
        torch.randn(sum(count), 5, generator=generator, dtype=torch.float64)
        for count in (queries, keys)
    )
    labels, key_labels = (
        torch.randint(-1, 3, (sum(count),), generator=generator) for count in (queries, keys)
    )
    return (query, key, labels, key_labels), (queries, keys)


def first_keys(counts):
    return [sum(counts[:rank]) for rank in range(len(counts))]


CASES = {
    "sup_con": lambda q, k, y, z, own, **o: sup_con(q, k, y, z, **o),
    "sup_con in": lambda q, k, y, z, own, **o: sup_con(q, k, y, z, variant="in", **o),
    "self": lambda q, k, y, z, own, **o: sup_con(
        q, k, y, z, self_index=own[:, 0], hardness=0.5, **o
    ),
    "info_nce": lambda q, k, y, z, own, **o: info_nce(q, k, positive_index=own[:, 0], **o),
    "normalized": lambda q, k, y, z, own, **o: info_nce(
        q, k, positive_index=own[:, 0], normalize=True, exclude_index=own[:, 1:], **o
    ),
    "masked": lambda q, k, y, z, own, **o: info_nce(
        q, k, positive_index=own[:, 0], key_mask=z >= 0, **o
    ),
    "both masked": lambda q, k, y, z, own, **o: info_nce(
        q, k, labels=y.abs(), key_labels=z.abs(), query_mask=y >= 0, key_mask=z >= 0, **o
    ),
    "not itself": lambda q, k, y, z, own, **o: sup_con(q, q.sin(), y, y, exclude_self=True, **o),
    "decoupled": lambda q, k, y, z, own, **o: sup_con(q, k, y, z, decoupled=True, **o),
    "decoupled in": lambda q, k, y, z, own, **o: sup_con(
        q, k, y, z, variant="in", decoupled=True, hardness=0.5, **o
    ),
    "decoupled by index": lambda q, k, y, z, own, **o: info_nce(
        q, k, positive_index=own[:, 0], decoupled=True, normalize=True, **o
    ),
    "pairs": lambda q, k, y, z, own, **o: clip_loss(q, q.sin(), **o),
    "nce": lambda q, k, y, z, own, **o: nce(q, k, y, z, bias=-1.5, **o),
    "nce, hard": lambda q, k, y, z, own, **o: nce(
        q, k, y, z, bias=-1.5, hardness=0.5, normalize=True, **o
    ),
    "nce, by count": lambda q, k, y, z, own, **o: nce(
        q, k, y, z, hardness=0.25, self_index=own[:, 0], exclude_index=own, **o
    ),
    "nce, self": lambda q, k, y, z, own, **o: nce(
        q, k, y, z, bias=o["temperature"] * 2, self_index=own[:, 0], exclude_index=own, **o
    ),
    "log_sum_exp": lambda q, k, y, z, own, reduction, **o: log_sum_exp(q, k, **o),
}
REDUCTIONS = "mean", "none"


# Keys by the ring, whole and in pieces of a few rows, or all at once.
WAYS = {"ring": (1 << 18, 512), "ring in pieces": (1, 2), "gather": (1 << 18, 512)}


def of_rank(rank, world):
    """By way, case and reduction: loss, and gradients of query, key and temperature."""
    everything, cuts = batch(world)
    counts = [cuts[side] for side in (0, 1, 0, 1)]
    own = own_index(cuts[0][rank : rank + 1], cuts[1][rank : rank + 1])
    parts = [each.split(count)[rank] for each, count in zip(everything, counts, strict=True)]
    results = []
    for way, (exchange.PIECE_BYTES, ranks.BLOCK) in WAYS.items():
        group = Ranks(dist.group.WORLD, "sum", way.split()[0])
        results += [found(case, *parts, own, reduction, group=group) for case, reduction in tried()]
    return results


def tried():
    return [(case, reduction) for case in CASES for reduction in REDUCTIONS]


def found(case, query, key, labels, key_labels, own, reduction, **options):
    query, key, temperature = leaves = [
        each.clone().requires_grad_()
        for each in (query, key, torch.tensor(0.3, dtype=torch.float64))
    ]
    options |= {"temperature": temperature, "reduction": reduction}
    loss = CASES[case](query, key, labels, key_labels, own, **options)
    return [loss, *torch.autograd.grad(loss.sum() + 0 * key.sum(), leaves)]  # it may not be used


def own_index(queries, keys):
    """The query's own row on its own rank and the row before it; -1 where there is none. (N, 2)"""
    named = []
    for num_queries, num_keys, first in zip(queries, keys, first_keys(keys), strict=True):
        row = torch.arange(num_queries)
        both = torch.stack([row, row - 1], 1)
        there = (both >= 0) & (row < num_keys)[:, None]
        named.append(torch.where(there, both + first, -1))
    return torch.cat(named)


@pytest.mark.parametrize("world", ROWS)
def test_equal_one_process(world, tmp_path):
    by_rank = on_ranks(world, of_rank, tmp_path, world)
    everything, cuts = batch(world)
    of_one = {each: found(each[0], *everything, own_index(*cuts), each[1]) for each in tried()}
    for each, *results in zip([*of_one] * len(WAYS), *by_rank, strict=True):
        expected = of_one[each]
        loss, of_query, of_key, of_temperature = zip(*results, strict=True)
        if loss[0].ndim == 0:
            for of_a_rank in loss:
                close(of_a_rank, expected[0])
        else:
            close(joined(loss), expected[0])
        close(joined(of_query), expected[1])
        close(joined(of_key), expected[2])
        close(sum(of_temperature), expected[3])


def joined(parts):
    return torch.cat([torch.as_tensor(part) for part in parts])


SIZES = 4, 1, 3  # pairs by rank
WIDTHS = 3, 6  # features by layer


def layers(dtype):
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randn(sum(SIZES), width, generator=generator).to(dtype) for width in WIDTHS]
        for _ in range(2)
    ]


def pairs_of_rank(rank):
    """Layers and CLIP's pairs in float64, float32 and bfloat16, in pieces of a few rows."""
    exchange.PIECE_BYTES, ranks.BLOCK = WAYS["ring in pieces"]
    results = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        query, key = (
            [rows.split(SIZES)[rank].clone().requires_grad_() for rows in side]
            for side in layers(dtype)
        )
        group = Ranks(dist.group.WORLD, "sum", "ring")
        loss = info_nce(query, key, group=group)
        clip = mim4dd.clip_loss(query[0], key[0], group=group)
        results += [loss, *torch.autograd.grad(loss.sum(), (*query, *key))]
        results += [clip, *torch.autograd.grad(clip, (query[0], key[0]))]
    return [result.float() if result.dtype == torch.bfloat16 else result for result in results]


def test_layers_dtypes_and_pairs(tmp_path):
    by_rank = on_ranks(len(SIZES), pairs_of_rank, tmp_path)
    results = zip(*by_rank, strict=True)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        query, key = ([rows.double().requires_grad_() for rows in side] for side in layers(dtype))
        expected = info_nce(query, key)
        for each in next(results):
            close(each, expected, tolerance)
        for gradient in torch.autograd.grad(expected.sum(), (*query, *key)):
            close(joined(next(results)), gradient, tolerance)
        expected = mim4dd.clip_loss(query[0], key[0])
        for each in next(results):
            close(each, expected, tolerance)
        for gradient in torch.autograd.grad(expected, (query[0], key[0])):
            close(joined(next(results)), gradient, tolerance)


def certain_of_rank(rank):
    """Positives that are certain: the loss is what the other ranks' keys take from p = 1."""
    query, key = certain()
    query, key = (side.split(SIZES)[rank].clone().requires_grad_() for side in (query, key))
    labels = torch.arange(sum(SIZES)).split(SIZES)[rank]
    group = Ranks(dist.group.WORLD, "sum", "ring")
    options = {"temperature": 1.0, "reduction": "none", "group": group}
    losses = [
        info_nce(query, key, **options),
        sup_con(query, key, labels, labels, **options),
        sup_con(query, key, labels, labels, variant="in", **options),
    ]
    gradients = [torch.autograd.grad(loss.sum(), query)[0] for loss in losses]
    return losses + gradients


def certain():
    key = torch.eye(sum(SIZES), 8)
    return 25 * key, key


def test_certain_positives_keep_their_digits(tmp_path):
    by_rank = on_ranks(len(SIZES), certain_of_rank, tmp_path)
    query, key = (side.double().requires_grad_() for side in certain())
    expected = info_nce(query, key, temperature=1.0, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), query)
    assert 0 < expected.max() < 1e-9
    for place, parts in enumerate(zip(*by_rank, strict=True)):
        close(joined(parts), expected if place < 3 else gradient, 1e-5)


# Of encoded queries and keys, their labels, a learned temperature and bias: as trained under DDP.
TRAINED = {
    "info_nce": lambda q, k, y, z, own, bias, **o: info_nce(q, k, positive_index=own, **o),
    "sup_con": lambda q, k, y, z, own, bias, **o: sup_con(q, k, y, z, self_index=own, **o),
    "nce": lambda q, k, y, z, own, bias, **o: nce(q, k, y, z, bias=bias, **o),
    "clip_loss": lambda q, k, y, z, own, bias, **o: clip_loss(q, q.sin(), **o),
    "log_sum_exp": lambda q, k, y, z, own, bias, group=None, **o: (
        log_sum_exp(q, k, group=group, **o).sum() * (1 if group is None else WORLD)
    ),
}
WORLD = 4


def gradients_of_rank(rank, gradients):
    """By loss: of a model's parameters, temperature and bias, averaged by DDP, or added up."""
    everything, (queries, keys) = batch(WORLD)
    counts = queries, keys, queries, keys
    query, key, *labels = (
        each.split(count)[rank] for each, count in zip(everything, counts, strict=True)
    )
    index = own_index(queries[rank : rank + 1], keys[rank : rank + 1])[:, 0]
    results = []
    for loss in TRAINED.values():
        network = Encoder()
        group = dist.group.WORLD if gradients == "mean" else Ranks(dist.group.WORLD, "sum")
        own = network
        if gradients == "mean":
            network = torch.nn.parallel.DistributedDataParallel(network)
        both = network(torch.cat([query, key])).split([len(query), len(key)])
        options = {"temperature": own.temperature, "group": group}
        value = loss(*both, *labels, index, own.bias, **options)
        if gradients == "sum" and loss is TRAINED["log_sum_exp"]:
            value = value / WORLD  # nothing is reduced, so nothing is scaled
        value.backward()
        found = [parameter.grad for parameter in own.parameters()]
        if gradients == "sum":
            for each in found:
                dist.all_reduce(each)
        results.append(found)
    return results


class Encoder(torch.nn.Module):
    """Linear, with a temperature and a bias that are learned beside it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.linear = torch.nn.Linear(5, 3, dtype=torch.float64)
        self.temperature = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.bias = torch.nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))

    def forward(self, rows):
        return self.linear(rows) + 0 * (self.temperature + self.bias)


@pytest.mark.parametrize("gradients", ["mean", "sum"])
def test_parameters_have_the_gradient_of_the_whole_batch(gradients, tmp_path):
    by_rank = on_ranks(WORLD, gradients_of_rank, tmp_path, gradients)
    (query, key, *labels), cuts = batch(WORLD)
    for loss, *of_ranks in zip(TRAINED.values(), *by_rank, strict=True):
        network = Encoder()
        both = network(torch.cat([query, key])).split([len(query), len(key)])
        index = own_index(*cuts)[:, 0]
        loss(*both, *labels, index, network.bias, temperature=network.temperature).backward()
        for found in of_ranks:
            for gradient, parameter in zip(found, network.parameters(), strict=True):
                close(gradient, parameter.grad)


def refusals_of_rank(rank):
    query, key = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    labels = torch.arange(3) + 3 * rank
    group = dist.group.WORLD
    refused = [
        lambda: info_nce(torch.randn(3, 4 + rank), torch.randn(3, 4 + rank), group=group),
        lambda: info_nce(query if rank else query.detach(), key, group=group),
        lambda: info_nce([query] * (1 + rank), [key] * (1 + rank), group=group),
        lambda: sup_con(query, key, labels, labels + 100, group=group),
        lambda: info_nce(query, key, backend="reference", group=group),
        lambda: info_nce(query, key, negative_keys=key, group=group),
        lambda: info_nce(query, key, positive_index=torch.tensor([0, 1, 3]), group=group),
        lambda: Ranks("world"),
        lambda: Ranks(group, "average"),
        lambda: Ranks(group, exchange="both"),
        *(
            lambda loss=loss, how=how: twice_differentiated(
                loss, query, key, Ranks(group, exchange=how)
            )
            for how in ("ring", "gather")
            for loss in (info_nce, clip_loss, of_classes, log_sum_exp)
        ),
    ]
    messages = []
    for each in refused:
        with pytest.raises((ValueError, TypeError, RuntimeError)) as raised:
            each()
        messages.append(str(raised.value))
    loss = mim4dd.InfoNCELoss()
    loss(query, key, group=group)
    with pytest.raises(RuntimeError, match="the last call had a group"):
        _ = loss.mi_lower_bound
    return messages


def of_classes(query, key, group):
    labels = torch.arange(3)
    return nce(query, key, labels, labels, group=group)


def twice_differentiated(loss, query, key, group):
    value = loss(query, key, group=group).sum()
    (gradient,) = torch.autograd.grad(value, query, create_graph=True)
    gradient.sum().backward()


def test_refusals(tmp_path):
    expected = [
        "all ranks of the group must give the same layers",
        "all ranks of the group must give the same layers",
        "all ranks of the group must give the same layers",
        "none of the 6 queries has a positive key",
        "backend must be None with a group",
        "negative_keys excludes group",
        "positive_index must lie in [0, 3)",
        "group must be a process group, got str",
        "gradients must be",
        "exchange must be",
        *["no second derivative"] * 8,
    ]
    for messages in on_ranks(2, refusals_of_rank, tmp_path):
        for message, part in zip(messages, expected, strict=True):
            assert part in message
