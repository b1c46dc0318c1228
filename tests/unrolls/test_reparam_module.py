"""ReparamModule: a module as a function of one flat vector, and its inner loop in one call."""

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unrolls.test_unroll import (
    TiedTwice,
    assert_same_gradients,
    jitter,
    make_inputs,
    make_model,
    naive_sgd,
    step_draws,
    terminal_loss,
)

from mim4dd import StepGraphs, flatten_parameters, unroll_sgd
from mim4dd.adapters.reparam_module import ReparamModule

ONE = torch.zeros(1)


def make_images(device, *shape):
    return torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)


def make_normalized(device):
    """With buffers that matter in eval mode."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    model = model.to(device, torch.float64)
    nn.init.uniform_(model[2].running_mean)
    nn.init.uniform_(model[2].running_var, 1, 2)
    return model


def test_it_is_the_module_at_its_flat_parameters(device):
    """At its own by default, on which ReparamModule of MTT stumbles; at others; at any order."""
    model = make_model(device)
    student = ReparamModule(model)
    assert [name for name, _ in student.named_parameters()] == ["flat_param"]
    assert torch.equal(student.flat_param, flatten_parameters(model))
    assert student.param_numel == 159
    images = make_images(device, 5, 1, 6, 6)
    output = student(images)
    assert torch.equal(output, model(images))
    output.sin().sum().backward()
    gradients = torch.autograd.grad(model(images).sin().sum(), list(model.parameters()))
    torch.testing.assert_close(student.flat_param.grad, torch.cat([g.flatten() for g in gradients]))
    other = copy.deepcopy(model)
    nn.utils.vector_to_parameters(student.flat_param.detach() * 0.5, other.parameters())
    assert torch.equal(student(images, flat_param=flatten_parameters(other)), other(images))
    theta = flatten_parameters(model).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda theta: student(images, flat_param=theta).sin().sum(), theta, fast_mode=True
    )


def test_a_parameter_that_modules_share_stands_once(device):
    model = TiedTwice().to(device, torch.float64)
    student = ReparamModule(model)
    assert student.param_numel == 20
    images = make_images(device, 4, 4)
    theta = (student.flat_param.detach() + 0.1).requires_grad_()
    output = student(images, flat_param=theta)
    weight, bias = theta[:16].view(4, 4), theta[16:]
    hidden = images
    for _ in range(2):
        hidden = torch.tanh(hidden @ weight.T + bias)
    expected = hidden @ weight.T
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(
        torch.autograd.grad(output.sin().sum(), theta),
        torch.autograd.grad(expected.sin().sum(), theta),
    )


def test_several_inputs():
    student = ReparamModule(nn.Bilinear(2, 3, 4))
    first, second = torch.randn(5, 2), torch.randn(5, 3)
    expected = student.module(first, second)
    assert torch.equal(student(first, second), expected)
    assert torch.equal(student(first, input2=second), expected)
    assert torch.equal(student(input2=second, input1=first, flat_param=None), expected)
    theta = torch.zeros_like(student.flat_param)
    assert student(first, input2=second, flat_param=theta).count_nonzero() == 0


@pytest.mark.parametrize("shape", [(1, -1), (-1, 1), (1, 1, -1)], ids=str)
def test_axes_of_size_one_are_dropped(shape, device):
    """MTT expands its vector to one row per GPU, of which there may be one."""
    student = ReparamModule(make_model(device))
    theta = torch.randn_like(student.flat_param).requires_grad_()
    images = make_images(device, 3, 1, 6, 6)
    rows = student(images, flat_param=theta.view(shape))
    assert torch.equal(rows, student(images, flat_param=theta))
    gradient, expected = (
        torch.autograd.grad(student(images, flat_param=each).sin().sum(), theta)[0]
        for each in (theta.view(shape), theta)
    )
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("fails", [False, True])
def test_unflattened_parameters(fails, device):
    """The module itself at other parameters, which get its gradients; then at its own again."""
    model = TiedTwice().to(device, torch.float64)
    student = ReparamModule(model)
    own = dict(model.named_parameters(remove_duplicate=False))
    theta = torch.randn_like(student.flat_param).requires_grad_()
    images = make_images(device, 4, 4)
    with contextlib.suppress(ZeroDivisionError), student.unflattened_param(theta[None]):
        output = student.module(images)
        assert torch.equal(output, student(images, flat_param=theta))
        if fails:
            raise ZeroDivisionError
    assert all(
        parameter is own[name] for name, parameter in model.named_parameters(remove_duplicate=False)
    )
    gradients = [
        torch.autograd.grad(each.sin().sum(), theta)
        for each in (output, student(images, flat_param=theta))
    ]
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_replaced_buffers(device):
    model = make_normalized(device)
    student = ReparamModule(model).eval()
    images = make_images(device, 5, 8)
    own = dict(model.named_buffers())
    buffers = [buffer.clone() * 2 for buffer in own.values()]
    with student.replaced_buffers(buffers):
        output = student.module(images)
    assert torch.equal(output, student(images, buffers=buffers))
    assert not torch.equal(output, student(images))
    assert all(buffer is own[name] for name, buffer in model.named_buffers())


def test_what_is_not_there_says_so():
    student = ReparamModule(nn.Linear(2, 2))
    assert not hasattr(student, "trace")
    with pytest.raises(AttributeError, match=r"no trace: torch\.compile"):
        student.trace(torch.zeros(1, 2))
    with pytest.raises(AttributeError, match=r"no clear_views: the parameters of student\.module"):
        student.clear_views()
    with pytest.raises(AttributeError, match="has no attribute 'weight'"):
        student.weight  # noqa: B018


def test_a_call_within_a_call(device):
    """Of the same wrapper, at other parameters: nothing of one is seen by the other."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.again = None

        def forward(self, images):
            inner = images if self.again is None else self.again(images)
            return self.linear(inner)

    model = Twice().to(device, torch.float64)
    student = ReparamModule(model)
    images = make_images(device, 3, 4)
    first, second = (torch.randn_like(student.flat_param) for _ in range(2))

    def inner(images):
        model.again = None
        return student(images, flat_param=second)

    model.again = inner
    nested = student(images, flat_param=first)
    assert torch.equal(nested, student(student(images, flat_param=second), flat_param=first))
    assert torch.equal(flatten_parameters(model), student.flat_param)


def test_an_error_in_the_module_leaves_it_whole(device):
    student = ReparamModule(make_model(device))
    before = flatten_parameters(student.module)
    with pytest.raises(RuntimeError):
        student(make_images(device, 3, 7, 6, 6), flat_param=torch.zeros_like(before))
    assert torch.equal(flatten_parameters(student.module), before)


@pytest.mark.parametrize("training", [True, False])
def test_buffers_are_read_and_what_is_written_is_dropped(training, device):
    model = make_normalized(device)
    student = ReparamModule(model).train(training)
    assert model[2].training is training
    before = [buffer.clone() for buffer in model.buffers()]
    images = make_images(device, 5, 8)
    expected = copy.deepcopy(model)(images)
    assert torch.equal(student(images), expected)
    assert torch.equal(student(images), expected)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_buffers_that_are_passed_are_read_and_written(device):
    model = make_normalized(device)
    student = ReparamModule(model).eval()
    images = make_images(device, 5, 8)
    buffers = [torch.zeros(6), torch.ones(6), torch.tensor(0)]
    buffers = [each.to(own) for each, own in zip(buffers, model.buffers(), strict=True)]
    plain = copy.deepcopy(model)
    plain[2].reset_running_stats()
    assert torch.equal(student(images, buffers=buffers), plain(images))
    assert not torch.equal(student(images), plain(images))
    before = [buffer.clone() for buffer in model.buffers()]
    student.train()
    plain.train()
    student(images, buffers=buffers)
    plain(images)
    for passed, moved in zip(buffers, plain.buffers(), strict=True):
        assert torch.equal(passed, moved)
    assert buffers[2] == 1
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_what_is_wrapped_follows(device):
    student = ReparamModule(make_normalized("cpu").float()).to(device, torch.float64).eval()
    assert {each.dtype for each in student.module.parameters()} == {torch.float64}
    assert student.module[2].running_mean.device.type == device
    assert student(torch.randn(2, 8, dtype=torch.float64, device=device)).shape == (2, 3)


def test_the_state_is_the_flat_parameter():
    student, other = (ReparamModule(make_model("cpu")) for _ in range(2))
    assert list(student.state_dict()) == ["flat_param"]
    other.load_state_dict(student.state_dict())
    images = make_images("cpu", 2, 1, 6, 6)
    assert torch.equal(other(images), student(images))
    copied = copy.deepcopy(student)
    with torch.no_grad():
        copied.flat_param.zero_()
    assert torch.equal(other(images), student(images))


@pytest.mark.parametrize("theta", ["own", "given"])
def test_unroll_is_the_inner_loop(theta, device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 6, 4, soft=True)
    student = ReparamModule(model)
    start = student.flat_param if theta == "own" else theta_0
    given = None if theta == "own" else theta_0
    theta_T = student.unroll(
        image_syn, label_syn, batches,
        lr=lr, flat_param=given, augment=jitter, seed=5, memory_budget=400_000,
    )  # fmt: skip
    now = start
    draws = step_draws(5, 6)
    for step, rows in enumerate(batches):
        output = student(draws(image_syn[rows], step), flat_param=now)
        (gradient,) = torch.autograd.grad(
            F.cross_entropy(output, label_syn[rows]), now, create_graph=True
        )
        now = now - lr * gradient
    assert_same_gradients(theta_T, now, [start, image_syn, label_syn, lr])


def test_unroll_passes_its_options_on(device):
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 4)
    student = ReparamModule(model)
    theta_0 = theta_0.detach()
    starts = torch.stack([theta_0, 0.5 * theta_0])

    def smooth(output, labels):
        return F.cross_entropy(output, labels, label_smoothing=0.1)

    for options in ({"window": 2}, {"method": "tesla"}, {"loss": smooth}):
        ours = student.unroll(image_syn, label_syn, batches, lr=lr, flat_param=starts, **options)
        theirs = unroll_sgd(model, starts, image_syn, label_syn, batches, lr=lr, **options)
        assert torch.equal(ours, theirs)
        gradients = [
            torch.autograd.grad(each.sin().sum(), [image_syn, lr]) for each in (ours, theirs)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    arguments = (image_syn, label_syn, batches)
    if device == "cpu":
        with pytest.raises(ValueError, match="step_graphs"):
            student.unroll(*arguments, lr=lr, step_graphs=StepGraphs())
    else:
        theta_T = student.unroll(*arguments, lr=lr, step_graphs=StepGraphs())
        torch.testing.assert_close(theta_T, student.unroll(*arguments, lr=lr))


def test_unroll_through_frozen_parameters_and_buffers(device):
    model = make_normalized(device)
    model[1].requires_grad_(False)
    student = ReparamModule(model).train()
    assert student.param_numel == 6 + 6 + 18 + 3
    image_syn = make_images(device, 6, 8)
    label_syn = torch.arange(6, device=device) % 3
    batches = torch.stack([torch.randperm(6, device=device)[:4] for _ in range(3)])
    lr = torch.tensor(0.1, dtype=torch.float64, device=device, requires_grad=True)
    theta_T = student.unroll(image_syn, label_syn, batches, lr=lr)
    expected = naive_sgd(model, student.flat_param, image_syn, label_syn, batches, lr)
    assert_same_gradients(theta_T, expected, [student.flat_param, image_syn, lr])


def test_it_is_a_model_like_any_other(device):
    """For unroll_sgd itself: one parameter tensor, with a functional call in its forward pass."""
    model, theta_0, image_syn, label_syn, batches, lr = make_inputs(device, 3, 4)
    inputs = (theta_0, image_syn, label_syn, batches)
    student = ReparamModule(model)
    assert_same_gradients(
        unroll_sgd(student, *inputs, lr=lr), unroll_sgd(model, *inputs, lr=lr),
        [theta_0, image_syn, lr],
    )  # fmt: skip
    two = theta_0.detach().expand(2, -1)
    torch.testing.assert_close(
        unroll_sgd(student, two, *inputs[1:], lr=lr), unroll_sgd(model, two, *inputs[1:], lr=lr)
    )


def test_the_module_is_left_as_it_is(device):
    model = make_normalized(device)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    originals = list(model.parameters())
    student = ReparamModule(model).train()
    image_syn = make_images(device, 6, 8)
    labels = torch.arange(6, device=device) % 3
    theta_T = student.unroll(image_syn, labels, torch.arange(6, device=device)[None], lr=0.1)
    terminal_loss(theta_T).backward()
    assert all(a is b for a, b in zip(model.parameters(), originals, strict=True))
    assert all(each.grad is None for each in originals)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_input():
    with pytest.raises(ValueError, match="ReLU has none"):
        ReparamModule(nn.ReLU())
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(TypeError, match=r"one dtype, got torch.float32, torch.float64"):
        ReparamModule(mixed)
    student = ReparamModule(make_normalized("cpu"))
    for shape in ((86,), (3, 29), (2, 87), ()):
        with pytest.raises(ValueError, match=r"flat_param must be \(P,\) = \(87,\), got \("):
            student(torch.zeros(2, 8).double(), flat_param=torch.zeros(shape))
    with pytest.raises(ValueError, match=r"flat_param must be"), student.unflattened_param(ONE):
        pass
    with pytest.raises(ValueError, match="buffers must be the 3 of module, got 1"):
        student(torch.zeros(2, 8).double(), buffers=[torch.zeros(6)])
    with pytest.raises(RuntimeError, match="within DataParallel"):
        student._replicate_for_data_parallel()
    with pytest.raises(ValueError, match="theta_0 must be"):
        student.unroll(
            torch.zeros(2, 8).double(), torch.arange(2), torch.arange(2)[None],
            lr=0.1, flat_param=torch.zeros(3).double(),
        )  # fmt: skip
