"""KeyQueue: what it holds after any pushes, where losses use it, saving, errors."""

import copy

import pytest
import torch

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
        queue.push(key, labels)
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


def test_it_moves_to_another_dtype(device):
    queue = KeyQueue(num_keys=5, dimension=3).to(device, torch.float64)
    queue.push(torch.randn(2, 3, dtype=torch.float64, device=device))
    assert queue.keys.dtype == torch.float64
    assert queue.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("key", "labels", "error", "message"),
    [
        (torch.zeros(2, 4), None, ValueError, r"key must be \(B, 3\)"),
        (torch.zeros(3), None, ValueError, "key must be 2-d"),
        (torch.zeros(2, 3).double(), None, TypeError, "key and the queue must share a dtype"),
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
