"""open_clip's ClipLoss as a base class: its methods, its attributes, what overrides them."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from adapters.test_adapters import assert_same, rows
from peers import adapted_peers
from torch import nn

from mim4dd.adapters.open_clip import ClipLoss

PEER = adapted_peers()["open_clip"]


def unit_rows(count):
    return [F.normalize(rows(count, 6), dim=1) for _ in range(2)]


def as_ours(subclass):
    """open_clip's own subclass, with ours in the place of its base: its code, our methods."""
    source = inspect.getsource(subclass)
    names = vars(PEER) | {"ClipLoss": ClipLoss}
    exec(compile(source, subclass.__name__, "exec"), names)
    return names[subclass.__name__]


@pytest.mark.parametrize("cache_labels", [False, True])
def test_methods_and_attributes(cache_labels):
    """Labels of batches that grow and shrink, kept or not."""
    ours, theirs = (each(cache_labels=cache_labels) for each in (ClipLoss, PEER.ClipLoss))
    device = torch.device("cpu")
    for count in (4, 7, 7, 4):
        labels = [each.get_ground_truth(device, count) for each in (ours, theirs)]
        assert torch.equal(*labels)
        assert ours.prev_num_logits == theirs.prev_num_logits
        assert list(ours.labels) == list(theirs.labels)
        inputs = [*unit_rows(count), rows().exp(), rows()]
        both = [each.get_logits(*inputs) for each in (ours, theirs)]
        for mine, exact in zip(*both, strict=True):
            assert_same(mine, exact, inputs)
    attributes = vars(nn.Module()).keys()
    assert vars(ours).keys() - attributes == vars(theirs).keys() - attributes
    assert ours.get_ground_truth(device, 7) is not ours.get_ground_truth(device, 7) or cache_labels


def test_labels_of_two_devices_do_not_mix():
    """There, one count for all devices keeps what is of another size."""
    ours, theirs = (each(cache_labels=True) for each in (ClipLoss, PEER.ClipLoss))
    for device, count in (("cpu", 4), ("meta", 7), ("cpu", 7)):
        labels = [each.get_ground_truth(torch.device(device), count) for each in (ours, theirs)]
    assert [len(each) for each in labels] == [7, 4]


def test_their_subclasses_over_ours():
    image, text = unit_rows(5)
    logits, tokens = rows(5, 3, 9), torch.randint(1, 9, (5, 3))
    ours, theirs = (
        coca(caption_loss_weight=2.0, clip_loss_weight=0.5)(image, text, logits, tokens, 20.0)
        for coca in (as_ours(PEER.CoCaLoss), PEER.CoCaLoss)
    )
    assert_same(torch.stack(ours), torch.stack(theirs), [image, text, logits])
    teacher = unit_rows(5)
    ours, theirs = (
        distill(cache_labels=True)(image, text, 20.0, *teacher, 50.0, output_dict=True)
        for distill in (as_ours(PEER.DistillClipLoss), PEER.DistillClipLoss)
    )
    assert ours.keys() == theirs.keys()
    ours, theirs = (torch.stack(list(losses.values())) for losses in (ours, theirs))
    assert_same(ours, theirs, [image, text, *teacher])


@pytest.mark.parametrize("bias", [None, 0.5])
@pytest.mark.parametrize("method", ["get_logits", "get_ground_truth", "on the object"])
def test_what_overrides_a_method_is_called(method, bias):
    """Where a margin or other pairs were asked for, the fused loss would be another."""

    def subclass(base):
        class Changed(base):
            if method == "get_logits":

                def get_logits(self, *arguments, **options):
                    per_image, per_text = super().get_logits(*arguments, **options)
                    return per_image - torch.eye(len(per_image)), per_text.tanh()

            elif method == "get_ground_truth":

                def get_ground_truth(self, device, num_logits):
                    return super().get_ground_truth(device, num_logits).flip(0)

        loss = Changed()
        if method == "on the object":
            loss.get_logits = lambda *arguments, **options: (image @ text.T, text @ text.T)
        return loss

    image, text = unit_rows(5)
    ours, theirs = (subclass(base)(image, text, 20.0, bias) for base in (ClipLoss, PEER.ClipLoss))
    assert_same(ours, theirs, [image, text])
    assert abs(ours - ClipLoss()(image, text, 20.0)) > 1e-3
