"""What the package relies on of PyTorch's private parts: a new torch that breaks one fails here."""

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import grad, jvp, vmap

import mim4dd
from mim4dd import _torch_private as private

X = torch.tensor([1.0, 2.0, 3.0])


def seen(transform, function):
    """What ``function`` returns of the tensor that a transform hands in."""
    found = []

    def run(x):
        found.append(function(x))
        return x.square().sum()

    transform(run)
    return found[0]


IN_GRAD = lambda run: grad(run)(X)  # noqa: E731
IN_VMAP = lambda run: vmap(run)(torch.stack([X, X]))  # noqa: E731
IN_JVP = lambda run: jvp(run, (X,), (X,))  # noqa: E731
PLAINLY = lambda run: run(X)  # noqa: E731


def in_older_vmap(function):
    """What ``function`` returns of a gradient among several that come at once."""
    found = []

    class Seen(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(_, gradient):
            found.append(function(gradient))
            return gradient

    x = X.clone().requires_grad_()
    torch.autograd.grad(Seen.apply(x), x, torch.eye(3), is_grads_batched=True)
    return found[0]


def in_vectorized(function):
    """The same where the older vmap is."""
    found = []

    def run(x):
        y = x.square()
        y.register_hook(lambda gradient: found.append(function(gradient)))
        return y

    jacobian(run, X, vectorize=True)
    return found[0]


def test_below_autograd_an_op_has_no_graph():
    x = X.clone().requires_grad_()
    with private.below_autograd():
        assert not (x * x).requires_grad
    assert (x * x).requires_grad


@pytest.mark.parametrize(
    ("transform", "active", "forward", "batched", "tracked"),
    [
        (PLAINLY, False, False, False, False),
        (IN_GRAD, True, False, False, True),
        (IN_VMAP, True, False, True, False),
        (IN_JVP, True, True, False, True),
    ],
)
def test_what_transforms_do(transform, active, forward, batched, tracked):
    assert seen(transform, lambda _: private.are_functorch_transforms_active()) == active
    assert seen(transform, lambda _: private.in_forward_mode()) == forward
    assert seen(transform, private.is_batched) == batched
    assert seen(transform, private.is_tracked) == tracked
    assert seen(transform, private.is_functorch_wrapped) == active
    assert not seen(transform, private.is_batched_by_older_vmap)


def test_the_tensor_within():
    within = seen(IN_GRAD, private.unwrapped)
    assert not private.is_functorch_wrapped(within)
    assert torch.equal(within, X)


def test_forward_mode_of_autograd():
    assert not private.in_forward_mode()
    with forward_ad.dual_level():
        assert private.in_forward_mode()


@pytest.mark.parametrize("inside", [in_older_vmap, in_vectorized])
def test_the_older_vmap_and_its_axis(inside):
    assert private.older_vmap_level() == 0
    level = inside(lambda _: private.older_vmap_level())
    assert level >= 1
    assert private.older_vmap_level() == 0
    assert inside(private.is_batched_by_older_vmap)
    assert not inside(private.is_batched)

    def doubled(gradient):
        samples = private.remove_batch_dim(gradient, level, 0, 0)
        assert samples.shape == (3, 3)
        assert not private.is_batched_by_older_vmap(samples)
        hidden = private.add_batch_dim(2 * samples, 0, level)
        assert hidden.shape == (3,)
        return torch.equal(private.remove_batch_dim(hidden, level, 0, 0), 2 * samples)

    assert inside(doubled)
    # What is not batched at a level is expanded, to no more than the given size.
    assert inside(lambda _: len(private.remove_batch_dim(X, level, 0, 0))) == 0


@pytest.mark.parametrize("keep", [False, True])
def test_whether_a_backward_pass_keeps_its_graph(keep):
    x, found = X.clone().requires_grad_(), []
    y = x.square().sum()
    y.register_hook(lambda _: found.append(private.keeps_graph()))
    torch.autograd.grad(y, x, retain_graph=keep)
    assert found == [keep]


def test_assert_async():
    private.assert_async(torch.tensor(True), "fits")
    with pytest.raises(RuntimeError, match="does not fit"):
        private.assert_async(torch.tensor(False), "does not fit")


def test_trees():
    tree = {"a": [1, (2, None)]}
    leaves, structure = private.tree_flatten(tree)
    assert leaves == [1, 2, None]
    assert private.tree_unflatten(leaves, structure) == tree
    assert private.tree_flatten((0, None), is_leaf=lambda node: node is None)[0] == [0, None]
    assert private.tree_map(lambda a, b: (a, b), [1, (2,)], [3, (4,)]) == [(1, 3), ((2, 4),)]
    assert private.tree_map_only(int, str, [1, "b", 2.0]) == ["1", "b", 2.0]


def test_saved_tensors_hooks():
    assert not private.has_saved_tensors_hooks()
    with torch.autograd.graph.save_on_cpu():
        assert private.has_saved_tensors_hooks()
    assert not private.has_saved_tensors_hooks()


def test_versions_count_changes_in_place():
    x = torch.zeros(2)
    before = private.version(x)
    x[:1].add_(1)
    assert private.version(x) == before + 1


def test_children_are_named_each_time_and_replaced():
    layer = nn.ReLU()
    model = nn.Sequential(layer, layer)
    assert list(private.children(model)) == ["0", "1"]
    private.children(model)["1"] = nn.Tanh()
    assert isinstance(model[1], nn.Tanh)


def named(node):
    """The dotted names that a node of a source reads of torch, tensors and modules."""
    if isinstance(node, ast.Attribute) and node.attr in ("_version", "_modules"):
        return [f"torch.{node.attr}"]
    if isinstance(node, ast.Attribute):
        return [name for name in [ast.unparse(node)] if re.fullmatch(r"torch(\.\w+)+", name)]
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
        return [f"{node.module}.{each.name}" for each in node.names]
    if isinstance(node, ast.Import):
        return [each.name for each in node.names if each.name.startswith("torch.")]
    return []


def private_parts(path):
    """What of that is private. The functions that begin with _foreach are documented."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {name for node in ast.walk(tree) for name in named(node)}
    return sorted(name for name in names if re.search(r"\._(?!_|foreach)", name))


def test_nothing_else_names_them():
    (package,) = mim4dd.__path__
    sources = [*Path(package).rglob("*.py"), *(Path(package) / "kernels").rglob("*.py")]
    found = {source.name: private_parts(source) for source in sources}
    assert len(found.pop("_torch_private.py")) > 10
    assert {name: parts for name, parts in found.items() if parts} == {}
