"""Every adapter beside the library it stands in for: values, gradients, and where they differ."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from on_ranks import on_ranks
from peers import adapted_peers
from torch import nn
from two_ranks import gathering_losses, ring_losses

from mim4dd.adapters import inf_cl, info_nce_pytorch, lightly, open_clip, pytorch_metric_learning

peers = SimpleNamespace(**adapted_peers())


def rows(*shape, device="cpu", dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, device=device, requires_grad=True)


def assert_same(ours, theirs, inputs):
    """Losses of any shape, and the gradients of their random combination by every input."""
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(theirs)
    gradients = [
        torch.autograd.grad(loss, inputs, upstream, allow_unused=True, materialize_grads=True)
        for loss in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients)


def both(module, theirs, *arguments, **options):
    """The loss of the adapter and of its peer, built alike and called alike."""
    return module(**options)(*arguments), theirs(**options)(*arguments)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("negatives", [None, "unpaired", "paired"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (20, 33, 8)], ids=str)
def test_info_nce_pytorch(shape, negatives, reduction, device):
    num_queries, num_negatives, dimension = shape
    inputs = [rows(num_queries, dimension, device=device) for _ in range(2)]
    options = {"temperature": 0.2, "reduction": reduction}
    if negatives:
        size = (num_queries, num_negatives) if negatives == "paired" else (num_negatives,)
        inputs.append(rows(*size, dimension, device=device))
        options["negative_mode"] = negatives
    assert_same(
        *both(info_nce_pytorch.InfoNCE, peers.info_nce_pytorch.InfoNCE, *inputs, **options), inputs
    )


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale_shape", [None, (), (1,)], ids=str)
@pytest.mark.parametrize("shape", [(1, 4), (25, 8)], ids=str)
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_open_clip(name, shape, scale_shape, with_bias, as_dict, device):
    inputs = [F.normalize(rows(*shape, device=device), dim=1) for _ in range(2)]
    scale = 20.0 if scale_shape is None else rows(*scale_shape, device=device).exp()
    bias = rows(device=device) if with_bias else None
    arguments = (*inputs, scale, bias, as_dict)
    modules = (getattr(side, name) for side in (open_clip, peers.open_clip))
    ours, theirs = both(*modules, *arguments)
    if as_dict:
        assert list(ours) == list(theirs)
        ours, theirs = ours["contrastive_loss"], theirs["contrastive_loss"]
    learned = [each for each in (scale, bias) if isinstance(each, torch.Tensor)]
    assert_same(ours, theirs, [*inputs, *learned])


def test_open_clip_gives_a_bias_a_gradient(device):
    """Of zero, and not none: DistributedDataParallel would wait for it."""
    bias = nn.Parameter(torch.tensor(-10.0, device=device))
    image, text = (rows(4, 3, device=device, dtype=torch.float32) for _ in range(2))
    open_clip.ClipLoss()(image, text, 10.0, bias).backward()
    assert bias.grad == 0


@pytest.mark.parametrize("temperature", [0.1, 0.5, -0.7])
@pytest.mark.parametrize("shape", [(1, 4), (23, 8)], ids=str)
def test_lightly(shape, temperature, device):
    inputs = [rows(*shape, device=device) for _ in range(2)]
    ours, theirs = both(
        lightly.NTXentLoss, peers.lightly.NTXentLoss, *inputs, temperature=temperature
    )
    assert_same(ours, theirs, inputs)
    ours, theirs = both(
        lightly.NTXentLoss, peers.lightly.NTXentLoss, *inputs, gather_distributed=True
    )
    assert_same(ours, theirs, inputs)


def lightly_with_bank(size, device, temperature=0.5):
    """Both with the same random keys to start from."""
    seed = torch.seed()
    modules = []
    for module in (lightly, peers.lightly):
        torch.manual_seed(seed)
        modules.append(module.NTXentLoss(temperature, size).to(device, torch.float64))
    torch.seed()
    return modules


@pytest.mark.parametrize("temperature", [0.2, -0.7])
def test_lightly_with_a_memory_bank(temperature, device):
    modules = lightly_with_bank((18, 5), device, temperature)
    for step in range(7):
        inputs = [rows(6, 5, device=device) for _ in range(2)]
        if step == 3:  # evaluation: the bank stays as it is
            inputs = [side.detach() for side in inputs]
            torch.testing.assert_close(*(module(*inputs) for module in modules))
        else:
            assert_same(*(module(*inputs) for module in modules), inputs)


@pytest.mark.parametrize("size", [0, (18, 5)], ids=str)
def test_lightly_in_an_autocast_loop(size, device):
    """The bank stays in float32, and the criterion where it was built: no one moved it."""
    ours = lightly.NTXentLoss(memory_bank_size=size)
    in_float32 = copy.deepcopy(ours)
    network = nn.Linear(8, 5).to(device)
    for _ in range(5):
        images = torch.randn(6, 8, device=device)
        with torch.autocast(device, torch.bfloat16):
            views = network(images), network(images.flip(1))
            loss = ours(*views)
        assert views[0].dtype == torch.bfloat16
        assert loss.dtype == torch.float32
        torch.testing.assert_close(
            loss, in_float32(*(view.float() for view in views)), rtol=1e-2, atol=1e-2
        )
        loss.backward()
    if size:
        assert ours.memory_bank.keys.dtype == torch.float32
        assert ours.memory_bank.keys.device.type == device


def test_lightly_drops_keys_where_its_bank_wraps(device):
    """Four keys into a bank of six, twice: lightly keeps two of the second batch, we keep four."""
    ours, theirs = lightly_with_bank((6, 5), device)
    batches = [rows(4, 5, device=device) for _ in range(2)]
    for batch in batches:
        ours(batch, batch)
        theirs(batch, batch)

    def kept(keys):
        newest = F.normalize(batches[1].detach(), dim=1)
        return int((torch.cdist(newest, keys) < 1e-6).any(1).sum())

    assert kept(theirs.memory_bank.bank) == 2
    assert kept(ours.memory_bank.keys) == 4


@pytest.mark.parametrize("scale", [None, 5.0, "learned"])
@pytest.mark.parametrize("by_index", [False, True])
def test_inf_cl(by_index, scale, device):
    """Beside the one line of PyTorch that its kernels compute: they need a GPU."""
    query, key = rows(9, 8, device=device), rows(14, 8, device=device)
    index = torch.randint(14, (9,), device=device) if by_index else None
    if scale == "learned":
        scale = rows(device=device).exp()
    ours = inf_cl.cal_inf_loss(query, key, index, scale)
    target = torch.arange(9, device=device) if index is None else index
    theirs = F.cross_entropy((1 if scale is None else scale) * query @ key.T, target)
    inputs = [query, key, scale] if isinstance(scale, torch.Tensor) else [query, key]
    assert_same(ours, theirs, inputs)


METRIC_LOSSES = ["NTXentLoss", "SupConLoss"]


def metric_losses(name, *arguments, **options):
    ours, theirs = (
        getattr(pytorch_metric_learning, name),
        getattr(peers.pytorch_metric_learning, name),
    )
    return both(ours, theirs, *arguments, **options)


@pytest.mark.parametrize("name", METRIC_LOSSES)
@pytest.mark.parametrize("num_rows", [7, 256])
@pytest.mark.parametrize("num_classes", [1, 4, 30])
@pytest.mark.parametrize("num_refs", [None, 5, 60])
def test_pytorch_metric_learning(num_refs, num_classes, num_rows, name, device, monkeypatch):
    """Class -1 counts as any other; some queries have no positive, or no negative, or neither."""
    monkeypatch.setattr(pytorch_metric_learning._losses, "_ROWS", num_rows)
    inputs = [rows(31, 6, device=device)]
    labels = torch.randint(-1, num_classes - 1, (31,), device=device)
    arguments = [*inputs, labels]
    if num_refs:
        inputs.append(rows(num_refs, 6, device=device))
        ref_labels = torch.randint(-1, num_classes, (num_refs,), device=device)
        arguments += [None, inputs[1], ref_labels]
    assert_same(*metric_losses(name, *arguments, temperature=0.3), inputs)


@pytest.mark.parametrize("name", METRIC_LOSSES)
@pytest.mark.parametrize(
    ("labels", "ref_labels"),
    [([0] * 4, None), ([0, 1, 2, 3], None), ([0] * 4, [0] * 5), ([0] * 4, [1] * 5), ([3], None)],
)
def test_without_positive_or_negative_pairs_the_loss_is_zero(labels, ref_labels, name, device):
    inputs = [rows(len(labels), 3, device=device)]
    arguments = [*inputs, torch.tensor(labels)]
    if ref_labels:
        inputs.append(rows(5, 3, device=device))
        arguments += [None, inputs[1], torch.tensor(ref_labels)]
    ours, theirs = metric_losses(name, *arguments)
    assert ours == theirs == 0
    assert_same(ours, theirs, inputs)


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_second_derivatives(name, device, monkeypatch):
    monkeypatch.setattr(pytorch_metric_learning._losses, "_ROWS", 3)
    loss = getattr(pytorch_metric_learning, name)(temperature=0.5)
    embeddings, ref_emb = rows(7, 3, device=device), rows(6, 3, device=device)
    labels, ref_labels = torch.tensor([0, 0, 1, 1, 2, 0, 5]), torch.tensor([0, 1, 1, 0, 7, 2])
    assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), embeddings)
    assert torch.autograd.gradgradcheck(
        lambda x, y: loss(x, labels, None, y, ref_labels), (embeddings, ref_emb)
    )


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_no_matrix_of_all_pairs_is_kept(name, device):
    """Not even where all pairs are positive but those of one query."""
    embeddings = rows(600, 4, device=device)
    labels = (torch.arange(600) == 0).long()
    largest = 0

    def pack(tensor):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = getattr(pytorch_metric_learning, name)()(embeddings, labels)
    assert largest <= embeddings.numel()
    loss.backward()


@pytest.mark.parametrize("name", METRIC_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, name, device):
    embeddings = rows(20, 8, device=device, dtype=torch.float32).detach().to(dtype)
    labels = torch.arange(20) // 4
    loss = getattr(pytorch_metric_learning, name)()
    expected = loss(embeddings.float(), labels)
    torch.testing.assert_close(loss(embeddings, labels), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast(device, torch.bfloat16):
        torch.testing.assert_close(loss(embeddings.float(), labels), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_their_nt_xent_stops_at_a_floor(dtype, device):
    """−log(finfo.tiny), beyond which it has no gradient; the loss here is 1000 and has one."""
    query = torch.tensor([[1.0, 0.0]], dtype=dtype, device=device, requires_grad=True)
    key = torch.tensor([[-1.0, 1e-3], [1.0, 0.0], [1.0, 0.1]], dtype=dtype, device=device)
    labels, key_labels = torch.tensor([0]), torch.arange(3)
    ours, theirs = metric_losses(
        "NTXentLoss", query, labels, None, key, key_labels, temperature=0.002
    )
    floor = -math.log(torch.finfo(dtype).tiny)  # 87.3 and 708.4
    assert theirs.item() == pytest.approx(floor)
    assert torch.autograd.grad(theirs, query)[0].norm() == 0
    logits = F.normalize(query) @ F.normalize(key).T / 0.002
    exact = F.cross_entropy(logits, torch.tensor([0], device=device))
    torch.testing.assert_close(ours, exact)
    assert ours > 999
    torch.testing.assert_close(*(torch.autograd.grad(loss, query)[0] for loss in (ours, exact)))


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_their_labels_lose_the_diagonal_where_both_are_one_object(name, device):
    embeddings, ref_emb = (rows(6, 3, device=device) for _ in range(2))
    labels = torch.arange(6, device=device)
    ours, theirs = metric_losses(name, embeddings, labels, None, ref_emb, labels)
    assert theirs == 0
    _, meant = metric_losses(name, embeddings, labels, None, ref_emb, labels.clone())
    assert meant > 0
    assert_same(ours, meant, [embeddings, ref_emb])


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_their_loss_of_one_positive_and_one_negative_pair_is_zero(name, device):
    query, key = rows(1, 3, device=device), rows(2, 3, device=device)
    labels, key_labels = torch.tensor([0]), torch.tensor([0, 1])
    ours, theirs = metric_losses(name, query, labels, None, key, key_labels, temperature=0.5)
    assert theirs == 0
    logits = F.normalize(query) @ F.normalize(key).T / 0.5
    exact = F.cross_entropy(logits, torch.tensor([0], device=device))
    assert_same(ours, exact, [query, key])


def test_their_sup_con_counts_what_rounding_leaves(device):
    """63 of 64 queries are solved; in float32 their losses round to zero, and no longer count."""

    def losses(dtype):
        key = torch.eye(64, dtype=dtype, device=device)
        query = torch.cat([key[1:2], key[1:]])
        labels = torch.arange(64, device=device)
        pair = metric_losses("SupConLoss", query, labels, None, key, labels + 0, temperature=0.03)
        return [loss.item() for loss in pair]

    ours, theirs = losses(torch.float64)
    assert ours == pytest.approx(theirs, rel=1e-9)
    in_float32, theirs = losses(torch.float32)
    assert in_float32 == pytest.approx(ours, rel=1e-6)
    assert theirs == pytest.approx(64 * ours, rel=1e-6)


def test_their_sup_con_hides_a_nan(device):
    embeddings, ref_emb = (rows(6, 3, device=device).detach() for _ in range(2))
    ref_emb[2, 0] = torch.nan
    labels = torch.arange(6, device=device) // 2
    ours, theirs = metric_losses("SupConLoss", embeddings, labels, None, ref_emb, labels.clone())
    assert theirs == 0
    assert ours.isnan()
    assert metric_losses("NTXentLoss", embeddings, labels, None, ref_emb, labels)[0].isnan()


ONE = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: info_nce_pytorch.InfoNCE(negative_mode="none"), "negative_mode must be one of"),
        (lambda: info_nce_pytorch.InfoNCE()(ONE, ONE[:1]), "got 1 for 2 queries"),
        (lambda: info_nce_pytorch.InfoNCE()(ONE, ONE, ONE[None]), "negative_keys must be 2-d"),
        (
            lambda: info_nce_pytorch.InfoNCE(negative_mode="paired")(ONE, ONE, ONE),
            "negative_keys must be 3-d",
        ),
        (lambda: open_clip.ClipLoss(world_size=2), "has 1 processes here: got 2 and 0"),
        (lambda: open_clip.ClipLoss(world_size=2, use_horovod=True), "use_horovod must be False"),
        (lambda: open_clip.ClipLoss()(ONE, ONE, ONE.sum(1)), "logit_scale must be 0-d"),
        (lambda: open_clip.SigLipLoss(world_size=2), "has 1 processes here: got 2 and 0"),
        (lambda: open_clip.SigLipLoss(dist_impl="ring"), "dist_impl must be one of None, 'bidir'"),
        (lambda: lightly.NTXentLoss(memory_bank_size=8), r"memory_bank_size must be \(M, D\)"),
        (lambda: lightly.NTXentLoss(temperature=0), r"abs\(temperature\) must be positive"),
        (lambda: lightly.NTXentLoss()(ONE, ONE[:1]), "same shape"),
        (
            lambda: pytorch_metric_learning.SupConLoss()(ONE, torch.arange(2), (ONE,) * 3),
            "indices_tuple must be None",
        ),
        (lambda: pytorch_metric_learning.NTXentLoss()(ONE), "labels must be given"),
        (
            lambda: pytorch_metric_learning.NTXentLoss()(ONE, torch.arange(2), ref_emb=ONE),
            "ref_labels with ref_emb",
        ),
        (
            lambda: pytorch_metric_learning.NTXentLoss()(ONE, torch.arange(3)),
            "labels must hold one entry per query",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_what_several_processes_do_not_share(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    lightly.NTXentLoss()(ONE, ONE)
    with pytest.raises(ValueError, match="gather_distributed must be False with a memory bank"):
        lightly.NTXentLoss(memory_bank_size=(4, 1), gather_distributed=True)(ONE, ONE)


def test_losses_that_gather(tmp_path):
    """Of lightly and open_clip on two ranks: values and gradients as in the peer on each."""
    for results in on_ranks(2, gathering_losses, tmp_path):
        assert len(results) == 5
        for mine, theirs in results.values():
            torch.testing.assert_close(mine, theirs)


def test_losses_on_a_ring(tmp_path):
    """Inf-CL's on two ranks: values and gradients as in the peer on each."""
    for results in on_ranks(2, ring_losses, tmp_path):
        assert results.keys() == {"own", "by index"}
        for theirs, *ours in results.values():
            for mine in ours:
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
