"""unroll_sgd: exact gradients, replayed augmentation, memory, what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mim4dd import (
    DivergenceError,
    flatten_parameters,
    reference,
    trajectory_loss,
    unroll_sgd,
)
from mim4dd._unroll.functional import FunctionalModel
from mim4dd.distill.networks import ConvNet
from mim4dd.distill.training.augment import Augmentation

RELATIVE_ERROR = 1e-9
BUDGETS = {"nothing": 0, "some activations": 400_000, "everything": 10**9}


def make_model(device):
    """A small smooth ConvNet, so that central differences converge."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(4, 4),
        nn.Softplus(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 9, 3),
    ).to(device, torch.float64)


def make_inputs(device, num_steps, batch=6, soft=False, lr_shape="scalar"):
    """theta_0, image_syn, label_syn, batches, lr with gradients wherever one can be asked for."""
    model = make_model(device)
    theta_0 = flatten_parameters(model).requires_grad_()
    image_syn = torch.randn(6, 1, 6, 6, dtype=torch.float64, device=device, requires_grad=True)
    label_syn = torch.arange(6, device=device) % 3
    if soft:
        label_syn = torch.randn(6, 3, dtype=torch.float64, device=device).softmax(1)
        label_syn = label_syn.requires_grad_()
    shape = {"scalar": (), "per step": (num_steps,), "per parameter": theta_0.shape}[lr_shape]
    lr = 0.05 + 0.1 * torch.rand(shape, dtype=torch.float64, device=device)
    batches = torch.stack([torch.randperm(6, device=device)[:batch] for _ in range(num_steps)])
    return model, theta_0, image_syn, label_syn, batches, lr.requires_grad_()


def naive_sgd(model, *inputs, **options):
    return reference.unroll_sgd(FunctionalModel(model), *inputs, **options)


def jitter(images, generator):
    """Augment with draws that differ from step to step and image to image."""
    shape = (images.shape[0], 1, 1, 1)
    options = {"generator": generator, "dtype": images.dtype, "device": images.device}
    return images * (0.5 + torch.rand(shape, **options)) + 0.1 * torch.randn(shape, **options)


def step_draws(seed, num_steps):
    """``jitter`` with the generator that unroll_sgd documents for every step."""
    seeds = torch.randint(2**63 - 1, (num_steps,), generator=torch.Generator().manual_seed(seed))

    def draws(images, step):
        return jitter(images, torch.Generator(images.device).manual_seed(int(seeds[step])))

    return draws


def terminal_loss(theta_T):
    return (theta_T.sin() * torch.linspace(-1, 1, len(theta_T)).to(theta_T)).sum()


def assert_same_gradients(actual, expected, inputs):
    gradients = torch.autograd.grad(terminal_loss(actual), inputs)
    for ours, exact in zip(
        gradients, torch.autograd.grad(terminal_loss(expected), inputs), strict=True
    ):
        assert (ours - exact).norm() <= RELATIVE_ERROR * exact.norm()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("augmented", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize("batch", [6, 4], ids=["full", "mini-batch"])
@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_gradients_match_the_naive_graph(num_steps, batch, augmented, soft, budget, device):
    inputs = make_inputs(device, num_steps, batch, soft)
    model, theta_0, image_syn, label_syn, batches, lr = inputs
    actual = unroll_sgd(
        model,
        theta_0,
        image_syn,
        label_syn,
        batches,
        lr=lr,
        augment=jitter if augmented else None,
        seed=5,
        memory_budget=BUDGETS[budget],
    )
    expected = naive_sgd(*inputs, augment=step_draws(5, num_steps) if augmented else None)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)
    leaves = [theta_0, image_syn, lr] + ([label_syn] if soft else [])
    assert_same_gradients(actual, expected, leaves)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("lr_shape", ["scalar", "per step", "per parameter"])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.9, 0.0), (0.0, 0.02), (0.9, 0.02)])
def test_momentum_decay_and_step_sizes(momentum, weight_decay, lr_shape, budget, device):
    inputs = make_inputs(device, 7, 4, lr_shape=lr_shape)
    model, theta_0, image_syn, label_syn, batches, lr = inputs
    options = {"momentum": momentum, "weight_decay": weight_decay}
    actual = unroll_sgd(
        model, theta_0, image_syn, label_syn, batches,
        lr=lr, memory_budget=BUDGETS[budget], **options,
    )  # fmt: skip
    assert_same_gradients(actual, naive_sgd(*inputs, **options), [theta_0, image_syn, lr])


def test_the_steps_are_those_of_torch_optim(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 5, 4)
    options = {"momentum": 0.9, "weight_decay": 0.02}
    theta_T = unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr.item(), **options)
    for rows in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(image_syn[rows]), label_syn[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(theta_T, flatten_parameters(model), rtol=1e-12, atol=1e-14)


class TiedTwice(nn.Module):
    """A module that occurs twice, and a second module that shares its weight."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.again = self.layers
        self.third = nn.Linear(4, 4, bias=False)
        self.third.weight = self.layers[0].weight

    def forward(self, images):
        return self.third(self.again(self.layers(images)))


def test_shared_parameters(device):
    model = TiedTwice().to(device, torch.float64)
    originals = list(model.parameters())
    theta_0 = flatten_parameters(model)
    assert theta_0.shape == (20,)
    images = torch.randn(6, 4, dtype=torch.float64, device=device, requires_grad=True)
    labels = (torch.arange(6, device=device) % 4).int()
    batches = torch.arange(6, device=device).expand(3, -1)
    theta_T = unroll_sgd(model, theta_0, images, labels, batches, lr=0.1)
    theta_T.sum().backward()
    assert images.grad.abs().sum() > 0
    # The model is left as it is: the same parameters, in place.
    assert all(a is b for a, b in zip(model.parameters(), originals, strict=True))
    assert torch.equal(flatten_parameters(model), theta_0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images.detach()), labels.long()).backward()
        optimizer.step()
    torch.testing.assert_close(theta_T.detach(), flatten_parameters(model))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
def test_any_integer_type_indexes_samples(dtype):
    model, *data, batches, lr = make_inputs("cpu", 3)
    expected = unroll_sgd(model, *data, batches, lr=lr)
    assert torch.equal(unroll_sgd(model, *data, batches.to(dtype), lr=lr), expected)


@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_gradients_match_central_differences(num_steps, device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, num_steps, 4, soft=True)

    def loss(theta_0, image_syn, label_syn, lr):
        theta_T = unroll_sgd(
            model, theta_0, image_syn, label_syn, batches, lr=lr, augment=jitter, seed=5
        )
        return terminal_loss(theta_T)

    leaves = (theta_0, image_syn, label_syn, lr)
    assert torch.autograd.gradcheck(loss, leaves, eps=1e-5, atol=1e-7, fast_mode=True)


def test_any_terminal_loss_sends_gradients(device):
    """Trajectory matching plus a loss that reads θ_T and the images a second time."""
    inputs = make_inputs(device, 3)
    model, theta_0, image_syn, label_syn, batches, lr = inputs
    target = theta_0.detach() + 0.1
    call = FunctionalModel(model)

    def total(theta_T):
        return trajectory_loss(theta_T, theta_0, target) + call(theta_T, image_syn).square().mean()

    actual = unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr)
    leaves = [theta_0, image_syn, lr]
    torch.testing.assert_close(
        torch.autograd.grad(total(actual), leaves),
        torch.autograd.grad(total(naive_sgd(*inputs)), leaves),
    )


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_fields_network_under_dsa(budget, device):
    """ReLU and DSA: the replay meets the same kinks and draws, and repeats bit for bit."""
    model = ConvNet(3, channels=1, width=8, depth=2, image_size=8).to(device, torch.float64)
    theta_0 = flatten_parameters(model).requires_grad_()
    image_syn = torch.randn(3, 1, 8, 8, dtype=torch.float64, device=device, requires_grad=True)
    labels = torch.arange(3, device=device)
    batches = labels.expand(9, 3)
    augment = Augmentation()

    def draws(images, step):
        seeds = torch.randint(2**63 - 1, (9,), generator=torch.Generator().manual_seed(1))
        return augment(images, torch.Generator(images.device).manual_seed(int(seeds[step])))

    def run():
        return unroll_sgd(
            model, theta_0, image_syn, labels, batches,
            lr=0.05, augment=augment, seed=1, memory_budget=BUDGETS[budget],
        )  # fmt: skip

    lr = torch.tensor(0.05, dtype=torch.float64, device=device)
    expected = naive_sgd(model, theta_0, image_syn, labels, batches, lr, augment=draws)
    assert_same_gradients(run(), expected, [theta_0, image_syn])
    first, second = (torch.autograd.grad(terminal_loss(run()), image_syn)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype, device):
    model = make_model(device).to(dtype)
    images = torch.randn(6, 1, 6, 6, dtype=dtype, device=device, requires_grad=True)
    labels = torch.arange(6, device=device) % 3
    theta_T = unroll_sgd(
        model, flatten_parameters(model), images, labels, labels.expand(2, 6), lr=0.1
    )
    assert theta_T.dtype == dtype
    terminal_loss(theta_T).backward()
    assert images.grad.dtype == dtype


def test_seeds_repeat_and_differ(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 3)

    def run(seed):
        return unroll_sgd(
            model, theta_0, image_syn, label_syn, batches, lr=lr, augment=jitter, seed=seed
        )

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_the_graph_can_be_walked_twice(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 3)
    theta_T = unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr, memory_budget=10**9)
    first = torch.autograd.grad(terminal_loss(theta_T), image_syn, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(terminal_loss(theta_T), image_syn)[0])


def test_only_what_is_asked_for(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 3)
    full = torch.autograd.grad(
        terminal_loss(unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr)),
        [theta_0, image_syn, lr],
    )
    leaves = [theta_0, image_syn, lr]
    for index, leaf in enumerate(leaves):
        arguments = [tensor.detach() for tensor in leaves]
        arguments[index] = leaf
        theta_T = unroll_sgd(model, arguments[0], arguments[1], label_syn, batches, lr=arguments[2])
        (gradient,) = torch.autograd.grad(terminal_loss(theta_T), leaf)
        torch.testing.assert_close(gradient, full[index])
    with torch.no_grad():
        assert not unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr).requires_grad


def test_the_model_is_left_as_it_is(device):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).to(device, torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, _, image_syn, label_syn, batches, lr = make_inputs(device, 3)
    theta_T = unroll_sgd(model, flatten_parameters(model), image_syn, label_syn, batches, lr=lr)
    terminal_loss(theta_T).backward()
    assert image_syn.grad.isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_second_derivative_is_refused(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 2)
    theta_T = unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr)
    (gradient,) = torch.autograd.grad(terminal_loss(theta_T), image_syn, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        gradient.sum().backward()


def test_a_model_with_randomness_of_its_own_is_refused(device):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    model = model.to(device, torch.float64)
    _, _, image_syn, label_syn, batches, lr = make_inputs(device, 4)
    theta_T = unroll_sgd(model, flatten_parameters(model), image_syn, label_syn, batches, lr=lr)
    with pytest.raises(RuntimeError, match="draws random numbers of its own"):
        terminal_loss(theta_T).backward()
    theta_T = unroll_sgd(
        model.eval(), flatten_parameters(model), image_syn, label_syn, batches, lr=lr
    )
    terminal_loss(theta_T).backward()


def test_divergence_names_the_step(device):
    model, theta_0, image_syn, label_syn, batches, _ = make_inputs(device, 5)
    lr = torch.tensor([0.1, 0.1, math.inf, 0.1, 0.1], dtype=torch.float64, device=device)
    with pytest.raises(DivergenceError, match="in step 3 of 5") as caught:
        unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr)
    assert caught.value.step == 3
    with pytest.raises(DivergenceError, match="not finite after the last step, 2"):
        unroll_sgd(model, theta_0, image_syn, label_syn, batches[:3], lr=lr[:3])
    bad = image_syn.detach().clone()
    bad[batches[0, 0], 0, 0, 0] = math.inf
    with pytest.raises(DivergenceError, match=r"not finite \(nan\) in step 0 of 5"):
        unroll_sgd(model, theta_0, bad, label_syn, batches, lr=0.1)


FROZEN = make_model("cpu").requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"theta_0": torch.zeros(3).double()}, ValueError, "the P = 159 parameters of model"),
        ({"theta_0": torch.zeros(0, 159).double()}, ValueError, r"must be \(P,\) or \(K, P\)"),
        ({"model": FROZEN}, ValueError, "must have parameters that require a gradient"),
        ({"image_syn": torch.zeros(6, 1, 6, 6)}, TypeError, "share a dtype"),
        ({"image_syn": torch.zeros(6).double()}, ValueError, r"image_syn must be \(n, ...\)"),
        ({"label_syn": torch.zeros(5).long()}, ValueError, "with n = 6 samples"),
        ({"label_syn": torch.zeros(6).double()}, TypeError, "label_syn .* integer dtype"),
        ({"label_syn": [0] * 6}, TypeError, "label_syn must be a torch.Tensor, got list"),
        ({"batches": [[0]]}, TypeError, "batches must be a torch.Tensor, got list"),
        ({"batches": torch.zeros(6).long()}, ValueError, r"batches must be \(T, B\), got"),
        ({"batches": torch.zeros(2, 1, 6).long()}, ValueError, r"batches must be \(T, B\), got"),
        (
            {"batches": torch.zeros(2, 3, 6).long(), "theta_0": torch.zeros(2, 159).double()},
            ValueError,
            "must have K = 2",
        ),
        ({"batches": torch.zeros(0, 6).long()}, ValueError, "at least one step"),
        ({"batches": torch.full((2, 3), 6)}, ValueError, "must index the 6 rows"),
        ({"batches": torch.full((2, 3), -1)}, ValueError, "must index the 6 rows"),
        ({"lr": torch.zeros(5).double()}, ValueError, r"lr must be \(\), \(T,\) = \(2,\)"),
        ({"lr": torch.tensor(0.1, device="meta").double()}, ValueError, "one device"),
        ({"momentum": 1.0}, ValueError, r"momentum must lie in \[0, 1\)"),
        ({"weight_decay": -1e-4}, ValueError, r"weight_decay must lie in \[0, inf\)"),
        ({"nesterov": True}, ValueError, "nesterov needs a momentum"),
        ({"method": "tesla", "momentum": 0.9}, ValueError, "for plain SGD"),
        ({"method": "exactly"}, ValueError, "method must be one of 'exact', 'tesla'"),
        ({"history": "disk"}, ValueError, "history must be one of 'device', 'host'"),
        ({"window": 0}, ValueError, "window must be from 1 to the 2 steps"),
        ({"window": 1}, ValueError, "theta_0 has no gradient through a window of 1"),
        ({"loss": lambda output, labels: output}, ValueError, "loss must return a scalar"),
        ({"memory_budget": -1}, ValueError, "memory_budget must be at least 0"),
    ],
)
def test_bad_input(change, error, message):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs("cpu", 2)
    arguments = {
        "model": model,
        "theta_0": theta_0,
        "image_syn": image_syn,
        "label_syn": label_syn,
        "batches": batches,
        "lr": lr,
    }
    with pytest.raises(error, match=message):
        unroll_sgd(**(arguments | change))


def test_flatten_parameters_copies_in_order():
    model = nn.Linear(3, 2)
    flat = flatten_parameters(model)
    assert torch.equal(flat, torch.cat([model.weight.flatten(), model.bias]))
    assert not flat.requires_grad
    flat.zero_()
    assert model.weight.abs().sum() > 0
    with pytest.raises(ValueError, match="ReLU has none"):
        flatten_parameters(nn.ReLU())


@pytest.mark.parametrize("head", [torch.sum, lambda theta: theta.square().sum()])
@pytest.mark.parametrize("by", ["theta_0", "image_syn", "lr"])
def test_a_second_derivative_is_an_error_and_no_zero(head, by, device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 2)
    leaf = {"theta_0": theta_0, "image_syn": image_syn, "lr": lr}[by]
    theta_T = unroll_sgd(model, theta_0, image_syn, label_syn, batches, lr=lr)
    (gradient,) = torch.autograd.grad(head(theta_T), image_syn, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(gradient.square().sum(), leaf, allow_unused=True)


@pytest.mark.parametrize("option", ["momentum", "weight_decay"])
def test_a_tensor_that_would_get_no_gradient_is_refused(option, device):
    model, *tensors, lr = make_inputs(device, 2)
    value = torch.tensor(0.5, requires_grad=True)
    with pytest.raises(TypeError, match=f"{option} must be a number"):
        unroll_sgd(model, *tensors, lr=lr, **{option: value})
