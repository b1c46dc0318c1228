"""KeyQueue: what it holds after any pushes, where losses use it, saving, errors."""

import copy
import pickle

import pytest
import torch
from on_ranks import on_ranks
from torch import nn
from torch._dynamo.testing import CompileCounter
from two_ranks import queue_within_ddp

from mim4dd import KeyQueue, info_nce, sup_con


def make_batch(size, device, first_label=0):
    key = torch.randn(size, 3, device=device, requires_grad=True)
    return key, torch.arange(first_label, first_label + size, device=device)


def by_label(queue):
    """Labels in rising order, with their keys: the order in the ring means nothing."""
    labels, order = queue.labels.sort()
    return queue.keys[order], labels


@pytest.mark.parametrize("sizes", [[2], [3, 4], [5, 5, 5], [4, 4, 4, 1], [17], [3, 17, 2], [7, 0]])
def test_it_holds_the_newest_keys(sizes, device):
    queue = KeyQueue(num_keys=7, dimension=3).to(device)
    pushed, count = [], 0
    for size in sizes:
        key, labels = make_batch(size, device, count)
        slots = queue.push(key, labels)
        kept = slots >= 0
        assert int(kept.sum()) == min(size, 7)
        assert torch.equal(queue.keys[slots[kept]], key[kept])
        assert torch.equal(queue.labels[slots[kept]], labels[kept])
        pushed.append(key)
        count += size
    keys, labels = by_label(queue)
    assert len(queue) == len(keys) == min(count, 7)
    assert torch.equal(labels, torch.arange(max(0, count - 7), count, device=device))
    assert torch.equal(keys, torch.cat(pushed)[-7:])
    assert not keys.requires_grad


def test_keys_without_a_label_take_no_part(device):
    queue = KeyQueue(num_keys=4, dimension=3).to(device)
    assert queue.keys.shape == (0, 3)
    assert queue.labels.shape == (0,)
    queue.push(make_batch(2, device)[0])
    queue.push(*make_batch(1, device, first_label=5))
    assert queue.labels.tolist() == [-1, -1, 5]


def test_as_negatives_of_info_nce(device):
    queue = KeyQueue(num_keys=8, dimension=3).to(device)
    queue.push(make_batch(6, device)[0])
    query, key = make_batch(5, device)[0], make_batch(5, device)[0]
    negatives = queue.keys.clone()
    expected = torch.autograd.grad(info_nce(query, key, negative_keys=negatives), (query, key))
    loss = info_nce(query, key, negative_keys=queue.keys)
    queue.push(key)  # before the backward, as MoCo does
    torch.testing.assert_close(torch.autograd.grad(loss, (query, key)), expected)


def test_as_cross_batch_memory_of_sup_con(device):
    """A half-filled queue counts no key that nobody pushed."""
    queue = KeyQueue(num_keys=50, dimension=3).to(device)
    key, _ = make_batch(20, device)
    key_labels = torch.arange(20, device=device) % 4
    queue.push(key, key_labels)
    query, labels = make_batch(4, device)
    torch.testing.assert_close(
        sup_con(query, queue.keys, labels, queue.labels), sup_con(query, key, labels, key_labels)
    )


def test_a_saved_queue_goes_on(device):
    queue = KeyQueue(num_keys=5, dimension=3).to(device)
    queue.push(*make_batch(7, device))
    restored = KeyQueue(num_keys=5, dimension=3).to(device)
    restored.load_state_dict(copy.deepcopy(queue.state_dict()))
    batch = make_batch(2, device, first_label=7)
    for each in (queue, restored):
        each.push(*batch)
    assert torch.equal(restored.keys, queue.keys)
    assert restored.labels.sort().values.tolist() == [4, 5, 6, 7, 8]
    assert [name for name, _ in queue.named_parameters()] == []
    assert "num_keys=5, dimension=3, filled=5" in repr(queue)


def through_a_file(state, path):
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def assert_same(first, second):
    assert torch.equal(first.keys, second.keys)
    assert torch.equal(first.labels, second.labels)
    batch = torch.randn(2, 3).to(first.keys), torch.tensor([90, 91]).to(first.labels)
    assert torch.equal(first.push(*batch), second.push(*batch))
    assert torch.equal(first.keys, second.keys)


@pytest.mark.parametrize("num_pushed", [0, 3, 5, 7])
@pytest.mark.parametrize("assign", [False, True])
def test_in_a_model_it_is_saved_and_loaded(num_pushed, assign, tmp_path, device):
    """By the names that it always had; into one that holds something else."""
    models = [nn.ModuleDict({"queue": KeyQueue(5, 3)}).to(device) for _ in range(2)]
    models[0]["queue"].push(*make_batch(num_pushed, device))
    models[1]["queue"].push(*make_batch(4, device, first_label=50))
    state = through_a_file(models[0].state_dict(), tmp_path / "model.pt")
    assert list(state) == ["queue._keys", "queue._labels", "queue._extra_state"]
    models[1].load_state_dict(state, assign=assign)
    assert_same(*(model["queue"] for model in models))


def test_a_state_that_does_not_fit_is_named():
    state = KeyQueue(5, 3).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for _keys"):
        KeyQueue(4, 3).load_state_dict(state)
    for name in ("_keys", "_labels", "_extra_state"):
        less = {key: value for key, value in state.items() if key != name}
        with pytest.raises(RuntimeError, match=rf'Missing key.*"{name}"'):
            KeyQueue(5, 3).load_state_dict(less)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"more"'):
        KeyQueue(5, 3).load_state_dict(state | {"more": torch.zeros(1)})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda queue: pickle.loads(pickle.dumps(queue))])
def test_a_copy_is_one_of_its_own(copied, device):
    queue = KeyQueue(num_keys=5, dimension=3).to(device)
    queue.push(*make_batch(3, device))
    keys = queue.keys
    other = copied(queue)
    other.push(torch.zeros(4, 3, device=device))
    assert torch.equal(queue.keys, keys)
    assert len(queue) == 3
    assert len(other) == 5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("within", [False, True])
def test_it_moves_to_another_dtype(within, dtype, device):
    """Keys of any dtype are kept in the queue's: under autocast they may be narrower."""
    queue = KeyQueue(num_keys=5, dimension=3)
    key, labels = make_batch(2, device)
    (nn.Sequential(queue) if within else queue).to(device, dtype)
    queue.push(key, labels)
    queue.push(key.to(dtype))
    assert queue.keys.dtype == dtype
    assert queue.labels.dtype == torch.int64
    assert torch.equal(queue.keys, torch.cat([key, key]).to(dtype))
    assert not queue.keys.requires_grad
    assert queue.float().keys.dtype == torch.float32
    assert queue.keys.device.type == device


def test_each_rank_keeps_its_own_keys(tmp_path):
    """Under DistributedDataParallel, whose default sends the buffers of rank 0 to all."""
    for result in on_ranks(2, queue_within_ddp, tmp_path):
        assert result["filled"] == 12
        newest = result["pushed"][-12:]
        assert torch.equal(result["keys"].sort(0).values, newest.sort(0).values)


def test_its_holder_sees_no_buffers():
    """What is done to all buffers of a model, as averaging, is not done to it."""
    model = nn.Sequential(KeyQueue(num_keys=5, dimension=3))
    assert list(model.buffers()) == []
    assert list(model.modules()) == [model, model[0]]


def moco_step(queue, query, key, labels):
    loss = info_nce(query, key, negative_keys=queue.keys)
    queue.push(key)
    return loss


def cross_batch_step(queue, query, key, labels):
    slots = queue.push(key, labels // 2)
    return sup_con(query, queue.keys, labels // 2, queue.labels, self_index=slots)


@pytest.mark.parametrize(("step", "num_pushed"), [(moco_step, 4), (cross_batch_step, 0)])
def test_a_compiled_step_is_compiled_twice(step, num_pushed, device):
    """While it fills, when it is full, and where it wraps around."""
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    queues = [KeyQueue(38, 3).to(device) for _ in range(2)]
    for queue in queues:
        queue.push(torch.ones(num_pushed, 3, device=device))
    for _ in range(20):
        query, (key, labels) = make_batch(4, device)[0], make_batch(4, device)
        losses = [
            each(queue, query, key.detach(), labels)
            for each, queue in zip((step, compiled), queues, strict=True)
        ]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*(torch.autograd.grad(loss, query) for loss in losses))
        assert torch.equal(queues[0].keys, queues[1].keys)
        assert torch.equal(queues[0].labels, queues[1].labels)
    assert counter.frame_count <= 2  # the second for any number of keys
    assert len(queues[1]) == 38


@pytest.mark.parametrize(
    ("key", "labels", "error", "message"),
    [
        (torch.zeros(2, 4), None, ValueError, r"key must be \(B, 3\)"),
        (torch.zeros(3), None, ValueError, "key must be 2-d"),
        (torch.zeros(2, 3).long(), None, TypeError, "key must have a floating-point dtype"),
        (torch.zeros(2, 3, device="meta"), None, ValueError, "key and the queue must be on one"),
        (torch.zeros(2, 3), torch.zeros(3).long(), ValueError, "got 3 for 2 keys"),
        (torch.zeros(2, 3), torch.zeros(2), TypeError, "labels must have an integer dtype"),
        (torch.zeros(2, 3), torch.zeros(2, 1).long(), ValueError, "labels must be 1-d"),
    ],
)
def test_a_bad_push_leaves_it_as_it_was(key, labels, error, message):
    queue = KeyQueue(num_keys=5, dimension=3)
    with pytest.raises(error, match=message):
        queue.push(key, labels)
    assert len(queue) == 0


@pytest.mark.parametrize(("arguments", "name"), [((0, 3), "num_keys"), ((3, 0), "dimension")])
def test_sizes_are_positive(arguments, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        KeyQueue(*arguments)
