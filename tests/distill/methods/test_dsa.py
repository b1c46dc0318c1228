"""DSA: DC of a real and a synthetic batch that one draw augments alike."""

import pytest
import torch
from bilevel import check_resumes_bit_for_bit, real_data, synthetic, task

from mim4dd.distill.methods.dc import DC, DCSettings
from mim4dd.distill.methods.dsa import DSA, DSASettings
from mim4dd.distill.training.augment import Augmentation

STRATEGY = "color_crop_cutout_scale_rotate"
SETTINGS = DSASettings(outer_loop=3, inner_loop=2, lr_net=0.1, batch_real=4, dsa_strategy=STRATEGY)


def test_the_loss_is_that_of_images_augmented_alike():
    """DC on sets that were augmented beforehand, one seed for both batches of each class."""
    data, new_network = task()
    image_syn, label_syn = synthetic(data)
    outcome = DSA(new_network, SETTINGS).loss(image_syn, label_syn, None, real_data(data))

    stream = real_data(data)
    stream.seed()  # of the network
    alike = Augmentation(STRATEGY, siamese=True)
    batches, samples = [], []
    for label, part in enumerate(image_syn.chunk(3)):
        batches.append(stream.sample_class(label, 4))
        seed = stream.seed()
        batches[-1] = alike(batches[-1], torch.Generator().manual_seed(seed))
        samples.append(alike(part, torch.Generator().manual_seed(seed)))

    class Prepared(DC):
        def augment_pair(self, samples, batch, real):
            return samples, batches.pop(0)

    plain = Prepared(new_network, DCSettings(batch_real=4))
    expected = plain.loss(torch.cat(samples), label_syn, None, real_data(data))
    torch.testing.assert_close(outcome.value, expected.value)
    torch.testing.assert_close(
        torch.autograd.grad(outcome.value, image_syn),
        torch.autograd.grad(expected.value, image_syn),
    )


def test_equal_images_have_no_distance():
    """Were the two batches augmented differently, these would differ."""
    data, new_network = task()
    method = DSA(new_network, SETTINGS)
    batches = [data.image_train[data.label_train == label][:4] for label in range(3)]
    labels = torch.arange(3).repeat_interleave(4)
    real = real_data(data)
    object.__setattr__(real, "sample_class", lambda label, batch: batches[label])
    images = torch.cat(batches).requires_grad_()
    assert abs(method.loss(images, labels, None, real).value.item()) < 0.01


def test_the_inner_training_augments_with_a_draw_per_image():
    data, new_network = task()
    image_syn, label_syn = synthetic(data)
    thetas = []
    for kind, settings in (
        (DSA, SETTINGS),
        (DC, DCSettings(outer_loop=3, inner_loop=2, lr_net=0.1, batch_real=4)),
    ):
        method = kind(new_network, settings)
        for iteration in range(2):
            method.loss(image_syn, label_syn, None, real_data(data, iteration))
        thetas.append(method.state()["theta"])
    assert not torch.equal(*thetas)
    assert DSA(new_network, SETTINGS).augment_inner.siamese is False


def test_it_resumes_bit_for_bit(tmp_path):
    data, new_network = task(double=False)
    check_resumes_bit_for_bit(lambda: DSA(new_network, SETTINGS), data, tmp_path)


def test_bad_strategies_are_refused():
    _, new_network = task()
    with pytest.raises(ValueError, match=r"dsa_strategy must name the families .*got 'none'"):
        DSA(new_network, DSASettings())
    with pytest.raises(ValueError, match="strategy must join some of color"):
        DSASettings(dsa_strategy="blur")
