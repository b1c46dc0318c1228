"""Augmentation that makes several images of one: crops of a canvas, as in MTT's textures."""

import pytest
import torch
from torch import nn
from unrolls.test_unroll import assert_same_gradients, make_model

from mim4dd import flatten_parameters, reference, unroll_adam, unroll_sgd
from mim4dd._unroll.functional import FunctionalModel

SIZE = 6  # what the model takes; the canvas has twice of it
NUM_STEPS = 3


def crops(images, generator, copies=3):
    """``copies`` crops of every canvas, wherever they fall on it: all once, then all once more."""
    taken = []
    for _ in range(copies):
        for image in images:
            draws = torch.randint(2 * SIZE, (2,), generator=generator, device=generator.device)
            taken.append(image.roll(draws.tolist(), (1, 2))[:, :SIZE, :SIZE])
    return torch.stack(taken)


def make_inputs(device, soft):
    model = make_model(device)
    options = {"dtype": torch.float64, "device": device}
    images = torch.randn(5, 1, 2 * SIZE, 2 * SIZE, **options).requires_grad_()
    labels = torch.arange(5, device=device) % 3
    if soft:
        labels = torch.randn(5, 3, **options).softmax(1).requires_grad_()
    lr = torch.tensor(0.1, **options).requires_grad_()
    return model, flatten_parameters(model).requires_grad_(), images, labels, lr


def draw_batches(device, *between):
    shape = (NUM_STEPS, *between, 4)
    return torch.rand(*shape[:-1], 5, device=device).argsort(-1)[..., :4]


def by_step(seed):
    """``crops`` with the generator that unroll_sgd documents for every step."""
    seeds = torch.randint(2**63 - 1, (NUM_STEPS,), generator=torch.Generator().manual_seed(seed))
    return lambda images, step: crops(
        images, torch.Generator(images.device).manual_seed(int(seeds[step]))
    )


@pytest.mark.parametrize("options", [{}, {"memory_budget": 10**9}, {"history": "checkpoints"}])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_gradients_are_those_of_the_naive_graph(soft, options, device):
    model, theta_0, images, labels, lr = make_inputs(device, soft)
    batches = draw_batches(device)
    inputs = (theta_0, images, labels, batches)
    actual = unroll_sgd(model, *inputs, lr=lr, augment=crops, seed=5, **options)
    expected = reference.unroll_sgd(FunctionalModel(model), *inputs, lr, augment=by_step(5))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    assert_same_gradients(actual, expected, [theta_0, images, lr] + [labels] * soft)


def test_the_labels_are_those_of_mtts_loop():
    """Written out: x and y are concatenated as often as there are crops."""
    model, theta_0, images, labels, lr = make_inputs("cpu", soft=False)
    rows = torch.tensor([3, 0, 1])
    seen = []

    def loss(output, targets):
        seen.append(targets)
        return nn.functional.cross_entropy(output, targets)

    theta_1 = unroll_sgd(
        model, theta_0, images, labels, rows[None], lr=lr, loss=loss, augment=crops
    )
    this_y = torch.cat([labels[rows] for _ in range(3)])
    assert torch.equal(seen[0], this_y)
    seeds = torch.randint(2**63 - 1, (1,), generator=torch.Generator().manual_seed(0))
    x = crops(images[rows], torch.Generator().manual_seed(int(seeds)))
    assert x.shape == (9, 1, SIZE, SIZE)
    output = FunctionalModel(model)(theta_0, x)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(output, this_y), theta_0)
    torch.testing.assert_close(theta_1, theta_0 - lr * gradient)


@pytest.mark.parametrize("unroll", [unroll_sgd, unroll_adam])
@pytest.mark.parametrize("own", [False, True], ids=["shared samples", "own samples"])
def test_trajectories(own, unroll, device):
    """Each has its own crops of its own canvases."""
    model, theta_0, images, labels, lr = make_inputs(device, soft=True)
    starts = torch.stack([theta_0.detach(), 0.8 * theta_0.detach()]).requires_grad_()
    batches = draw_batches(device, 2) if own else draw_batches(device)

    def enlarged(canvases, generator):  # without draws, so that one trajectory meets the same
        return torch.cat([canvases[..., :SIZE, :SIZE], canvases[..., SIZE:, SIZE:].sin()])

    together = unroll(model, starts, images, labels, batches, lr=lr, augment=enlarged)
    singly = torch.stack(
        [
            unroll(model, start, images, labels, batches[:, k] if own else batches, lr=lr,
                   augment=enlarged)
            for k, start in enumerate(starts)
        ]
    )  # fmt: skip
    torch.testing.assert_close(together, singly, rtol=1e-9, atol=1e-12)
    leaves = [starts, images, labels, lr]
    weights = torch.randn_like(together)
    for ours, exact in zip(
        torch.autograd.grad((weights * together).sum(), leaves),
        torch.autograd.grad((weights * singly).sum(), leaves),
        strict=True,
    ):
        assert exact.norm() > 0
        assert (ours - exact).norm() <= 1e-8 * exact.norm()


@pytest.mark.parametrize(
    ("augment", "error", "message"),
    [
        (
            lambda images, _: images[:3],
            ValueError,
            "as many images as the 4 it is given, or a mult",
        ),
        (lambda images, _: images[:0], ValueError, r"got shape \(0, 1, 6, 6\)"),
        (
            lambda images, _: torch.cat([images, images[:1]]),
            ValueError,
            r"got shape \(5, 1, 6, 6\)",
        ),
        (lambda images, _: images.sum(), ValueError, r"got shape \(\)"),
        (lambda images, _: (images, images), TypeError, "must return a torch.Tensor, got tuple"),
        (lambda images, _: images.float(), TypeError, "image_syn and what augment returns must"),
    ],
)
def test_other_numbers_are_refused(augment, error, message):
    model, theta_0, images, labels, lr = make_inputs("cpu", soft=False)
    with pytest.raises(error, match=message):
        unroll_sgd(
            model, theta_0, images[..., :SIZE, :SIZE], labels, draw_batches("cpu"), lr=lr,
            augment=augment,
        )  # fmt: skip
