"""Wrappers and options of pytorch-metric-learning beside the peer's; its losses: test_adapters."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from adapters.test_adapters import METRIC_LOSSES, assert_same, rows
from on_ranks import on_ranks
from peers import adapted_peers, peer
from places import ROOT
from two_ranks import distributed_metric_losses

import mim4dd
from mim4dd.adapters import pytorch_metric_learning as ours

THEIRS = adapted_peers()["pytorch_metric_learning"]
distances = peer("pytorch_metric_learning.distances")
reducers = peer("pytorch_metric_learning.reducers")
regularizers = peer("pytorch_metric_learning.regularizers")


def memories(name, memory_size):
    return [
        side.CrossBatchMemory(getattr(side, name)(temperature=0.2), 5, memory_size)
        for side in (ours, THEIRS)
    ]


@pytest.mark.parametrize("name", METRIC_LOSSES)
@pytest.mark.parametrize("memory_size", [7, 20, 40])
def test_cross_batch_memory(memory_size, name, device):
    """While it fills and when it wraps around; in-batch pairs count, those of one row do not."""
    pair = memories(name, memory_size)
    for _ in range(7):
        embeddings = rows(7, 5, device=device)
        labels = torch.randint(-1, 3, (7,))
        assert_same(*(memory(embeddings, labels) for memory in pair), [embeddings])
        mine, theirs = pair
        assert torch.equal(mine.queue.keys, theirs.embedding_memory[: len(mine.queue)])
        assert torch.equal(mine.queue.labels, theirs.label_memory[: len(mine.queue)])
    for memory in pair:
        memory.reset_queue()
    embeddings, labels = rows(4, 5, device=device), torch.arange(4) // 2
    assert_same(*(memory(embeddings, labels) for memory in pair), [embeddings])
    assert_same(pair[0](embeddings, labels), pair[1](embeddings, labels), [embeddings])


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_an_enqueue_mask(name, device):
    """Those of the mask go in, the loss is that of the others; either may be none."""
    pair = memories(name, 9)
    for count in (5, 2, 8, 12, 0):  # full before none: there, none makes it so
        embeddings, labels = rows(12, 5, device=device), torch.randint(3, (12,), device=device)
        mask = torch.arange(12, device=device) < count
        losses = [memory(embeddings, labels, enqueue_mask=mask) for memory in pair]
        assert_same(*losses, [embeddings])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_memory_follows_the_embeddings(dtype, device):
    memory = memories("NTXentLoss", 12)[0]
    for _ in range(3):
        memory(rows(6, 5, device=device, dtype=dtype), torch.arange(6) // 2).backward()
    assert memory.queue.keys.dtype == dtype
    assert memory.queue.keys.device.type == device


def test_their_memory_is_full_once_none_was_pushed():
    """With zeros, which are then keys of class 0."""
    mine, theirs = memories("SupConLoss", 9)
    embeddings, labels = rows(4, 5), torch.tensor([0, 1, 0, 1])
    none = torch.zeros(4, dtype=torch.bool)
    assert mine(embeddings, labels, enqueue_mask=none) == 0
    assert theirs(embeddings, labels, enqueue_mask=none) > 0


def test_a_saved_memory_goes_on():
    """There its place is not in its state: a run that goes on starts to fill anew."""
    embeddings, labels = rows(6, 5).detach(), torch.arange(6) // 2
    pair = memories("SupConLoss", 8)
    restored = copy.deepcopy(pair)
    for memory in pair:
        memory(embeddings, labels)
    for memory, saved in zip(restored, pair, strict=True):
        memory.double().load_state_dict(saved.state_dict())
    batch = rows(4, 5).detach(), torch.tensor([0, 1, 0, 1])
    expected, mine = pair[0](*batch), restored[0](*batch)
    torch.testing.assert_close(pair[1](*batch), expected)
    assert mine == expected
    assert abs(restored[1](*batch) - expected) > 1e-6


PAGE = (ROOT / "docs" / "adapters.md").read_text()
MOCO, CROSS_BATCH = re.findall(
    r"^```python\n(.*?)^```", PAGE.partition("## Memory banks")[2], re.M | re.S
)


def run(program, batches):
    """What a program of docs/adapters.md leaves behind."""
    names = {"torch": torch, "F": F, "mim4dd": mim4dd, "batches": batches, "losses": []}
    names |= {"num_keys": 20, "dimension": 5}
    exec(compile(program, "docs/adapters.md", "exec"), names)
    return names


def test_the_page_on_a_cross_batch_memory():
    """As the peer's, from the first step on, and where it wraps around."""
    theirs = THEIRS.CrossBatchMemory(THEIRS.SupConLoss(temperature=0.1), 5, 20)
    embeddings = [rows(8, 5, dtype=torch.float32) for _ in range(5)]
    batches = [(each, torch.tensor([0, 1, 0, 1, 2, 2, 3, 4])) for each in embeddings]
    ours = torch.stack(run(CROSS_BATCH, batches)["losses"])
    assert_same(ours, torch.stack([theirs(*batch) for batch in batches]), embeddings)


def test_the_page_on_a_queue_of_negatives():
    batches = [
        [F.normalize(rows(8, 5, dtype=torch.float32), dim=1) for _ in "qk"] for _ in range(5)
    ]
    torch.manual_seed(3)
    ours = run(MOCO, batches)["losses"]
    torch.manual_seed(3)
    queue = F.normalize(torch.randn(20, 5), dim=1)
    theirs = []
    for query, key in batches:
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], 1) / 0.1
        theirs.append(F.cross_entropy(logits, torch.zeros(8, dtype=torch.long)))
        queue = torch.cat([queue, key.detach()])[-20:]
    inputs = [side for batch in batches for side in batch]
    assert_same(torch.stack(ours), torch.stack(theirs), inputs)


DEFAULTS = {"NTXentLoss": reducers.MeanReducer, "SupConLoss": reducers.AvgNonZeroReducer}


@pytest.mark.parametrize("name", METRIC_LOSSES)
@pytest.mark.parametrize(
    "distance",
    [distances.CosineSimilarity(), distances.DotProductSimilarity(normalize_embeddings=True)],
)
def test_defaults_may_be_said(distance, name):
    embeddings, labels = rows(9, 5), torch.arange(9) // 2
    options = {
        "distance": distance,
        "reducer": DEFAULTS[name](),
        "embedding_regularizer": None,
        "collect_stats": False,
    }
    losses = [getattr(side, name)(0.2, **options)(embeddings, labels) for side in (ours, THEIRS)]
    assert_same(*losses, [embeddings])


class OwnCosine(distances.CosineSimilarity):
    def compute_mat(self, query, ref):
        return super().compute_mat(query, ref) ** 3


@pytest.mark.parametrize("name", METRIC_LOSSES)
@pytest.mark.parametrize(
    "option",
    [
        {"distance": distances.LpDistance()},
        {"distance": distances.DotProductSimilarity(normalize_embeddings=False)},
        {"distance": distances.CosineSimilarity(p=1)},
        {"distance": distances.CosineSimilarity(power=2)},
        {"distance": OwnCosine()},
        {"reducer": reducers.SumReducer()},
        {"reducer": reducers.PerAnchorReducer(reducers.AvgNonZeroReducer())},
        {"reducer": reducers.ThresholdReducer(low=0)},
        {"embedding_regularizer": regularizers.LpRegularizer()},
        {"collect_stats": True},
    ],
    ids=str,
)
def test_what_would_change_the_loss_is_refused(option, name):
    (argument,) = option
    with pytest.raises(ValueError, match=f"^{argument} must be"):
        getattr(ours, name)(**option)
    other = DEFAULTS["SupConLoss" if name == "NTXentLoss" else "NTXentLoss"]
    with pytest.raises(ValueError, match=re.escape(f"reducer must be {DEFAULTS[name].__name__}()")):
        getattr(ours, name)(reducer=other())


ONE = torch.zeros(2, 3)
TWO = torch.arange(2)
LOSS = ours.NTXentLoss()
MEMORY = ours.CrossBatchMemory(LOSS, 3, 1)
WRAPPER = ours.DistributedLossWrapper(LOSS)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ours.CrossBatchMemory(THEIRS.NTXentLoss(), 3), TypeError, "loss must be NTXent"),
        (lambda: ours.CrossBatchMemory(LOSS, 3, miner=object()), ValueError, "miner must be None"),
        (lambda: ours.CrossBatchMemory(LOSS, 3, 0), ValueError, "num_keys must be at least 1"),
        (lambda: MEMORY(ONE, TWO), ValueError, "memory_size must be at least the batch, got 1"),
        (lambda: MEMORY(ONE, TWO, (TWO,) * 3), ValueError, "indices_tuple must be None"),
        (lambda: MEMORY(ONE, TWO, enqueue_mask=TWO), TypeError, "enqueue_mask must have dtype"),
        (lambda: MEMORY(ONE, TWO, enqueue_mask=TWO[:1] > 0), ValueError, "got 1 for 2 embeddings"),
        (lambda: MEMORY(ONE[:1, :2], TWO[:1]), ValueError, r"key must be \(B, 3\)"),
        (lambda: ours.DistributedLossWrapper(THEIRS.NTXentLoss()), TypeError, "loss must be one"),
        (lambda: ours.DistributedLossWrapper(MEMORY, True), ValueError, "efficient must be False"),
        (lambda: WRAPPER(ONE), ValueError, "labels must be given"),
        (lambda: WRAPPER(ONE, TWO, ref_emb=ONE), ValueError, "ref_labels with ref_emb"),
        (lambda: WRAPPER(ONE, TWO, (TWO,) * 3), ValueError, "indices_tuple must be None"),
        (lambda: WRAPPER(ONE, TWO, enqueue_mask=TWO > 0), ValueError, "enqueue_mask needs a Cross"),
        (
            lambda: ours.DistributedLossWrapper(MEMORY)(ONE, TWO, None, ONE, TWO),
            ValueError,
            "ref_emb must be None with CrossBatchMemory",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_losses_of_two_processes(tmp_path):
    """Of each wrapper, values and gradients on both ranks, as in the peer."""
    for rank in on_ranks(2, distributed_metric_losses, tmp_path):
        assert len(rank) == 12
        for mine, theirs in rank.values():
            torch.testing.assert_close(mine, theirs)
