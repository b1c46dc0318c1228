"""Every loss and the unroll on small inputs, for threads and processes to run at once.

As a script it computes them in forks and loaders, and compares.
"""

import os
import threading

import torch
from torch.utils.data import DataLoader, Dataset

import mim4dd
import mim4dd.ops.conv3x3
import mim4dd.ops.norm_relu_pool
from mim4dd._turns import alone_in, differentiable_attention
from mim4dd.distill.networks import ConvNet

SEED = int(os.environ.get("MIM4DD_TEST_SEED", "0"))


def gradients(loss, *inputs):
    leaves = [each.clone().requires_grad_() for each in inputs]
    value = loss(*leaves)
    found = torch.autograd.grad(value, leaves, create_graph=True)
    second = torch.autograd.grad(sum(each.square().sum() for each in found), leaves)
    return [value, *found, *second]


def conv3x3(images, weight, grad):
    ops = torch.ops.mim4dd
    return [
        ops.conv3x3(images, weight, None),
        *ops.conv3x3_bwd(grad, images, weight, [True, True]),
        *ops.conv3x3_bwd_bwd(images, weight, grad, images, weight, [True, True, True]),
    ]


def flat_passes(theta, gradient, lr):
    moments = gradient.square()
    rows = torch.arange(len(theta) // 8) % 5
    gathered = torch.zeros(5, 8)
    torch.ops.mim4dd.scatter_add_rows(gathered, rows, theta[: 8 * len(rows)].view(-1, 8))
    return [
        gathered,
        mim4dd.sgd_step(theta, gradient, lr, weight_decay=0.1),
        *torch.ops.mim4dd.adam_step(theta, gradient, moments, moments, lr, 2),
        mim4dd.trajectory_loss(theta, theta + gradient, moments),
    ]


def unrolled(unroll, model, theta_0, image_syn, label_syn, batches, **options):
    theta_0, image_syn = theta_0.clone().requires_grad_(), image_syn.clone().requires_grad_()
    theta_T = unroll(model, theta_0, image_syn, label_syn, batches, lr=0.05, **options)
    return [theta_T, *torch.autograd.grad(theta_T.square().sum(), (theta_0, image_syn))]


def make_cases():
    """Functions without arguments, by name; each returns tensors."""
    draws = torch.Generator().manual_seed(SEED)

    def randn(*shape):
        return torch.randn(shape, generator=draws)

    # Large enough that every op takes several threads, where it is given them.
    query, key = randn(130, 40), randn(400, 40)
    labels = torch.randint(7, (130,), generator=draws)
    key_labels = torch.randint(7, (400,), generator=draws)
    images, weight = randn(4, 32, 12, 12), randn(32, 32, 3, 3)
    maps = images.to(memory_format=torch.channels_last)
    theta, gradient = randn(200_000), randn(200_000)
    model = ConvNet(3, 1, width=16, depth=2, image_size=8)
    theta_0 = 0.2 * randn(mim4dd.flatten_parameters(model).numel())
    batches = torch.stack([torch.randperm(6, generator=draws) for _ in range(3)])
    inner = model, theta_0, randn(6, 1, 8, 8), torch.arange(6) % 3, batches
    return {
        "info_nce": lambda: gradients(mim4dd.info_nce, query, key),
        "sup_con": lambda: gradients(
            lambda q, k: mim4dd.sup_con(q, k, labels, key_labels), query, key
        ),
        "nce": lambda: gradients(lambda q, k: mim4dd.nce(q, k, labels, key_labels), query, key),
        "clip_loss": lambda: gradients(mim4dd.clip_loss, query, key[:130]),
        "log_sum_exp": lambda: gradients(lambda q, k: mim4dd.log_sum_exp(q, k).sum(), query, key),
        "norm_relu_pool of planes": lambda: gradients(
            lambda x: mim4dd.norm_relu_pool(x, None, None, num_groups=8).square().sum(), images
        ),
        "norm_relu_pool of pixels": lambda: gradients(
            lambda x: mim4dd.norm_relu_pool(x, None, None, num_groups=8).square().sum(), maps
        ),
        "conv3x3": lambda: conv3x3(maps, weight, maps),
        "flat passes": lambda: flat_passes(theta, gradient, torch.tensor(0.1)),
        "unroll_sgd": lambda: unrolled(mim4dd.unroll_sgd, *inner),
        # A gradient that is 0 but for rounding, as that of a bias before a norm, makes no step.
        "unroll_adam": lambda: unrolled(mim4dd.unroll_adam, *inner, eps_root=1e-3),
    }


def run_all(first=0):
    """What every case gives, by name; the one at place ``first`` comes first."""
    cases = list(make_cases().items())
    results = {name: case() for name, case in cases[first:] + cases[:first]}
    return {name: [each.detach() for each in result] for name, result in results.items()}


def same(mine, theirs):
    """The names whose results have other bits."""
    return [
        name
        for name in theirs
        if not all(torch.equal(*pair) for pair in zip(mine[name], theirs[name], strict=True))
    ]


class Cases(Dataset):
    """What the cases give, computed by whoever asks."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.get_num_threads(), run_all(first=5 * index)


def forked(child):
    """Run ``child`` in a fork of this process, and require that it ends well."""
    process = os.fork()
    if process == 0:
        child()
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0, child


def main():
    """Fork while this process has used one thread, beside an unroll, and when it has used two."""
    torch.set_num_threads(1)
    expected = run_all()

    def on_several_threads():
        torch.set_num_threads(2)
        run_all()

    def on_one_thread():
        torch.set_num_threads(1)
        assert same(run_all(), expected) == []

    forked(on_several_threads)
    check_fork_beside_an_unroll(on_one_thread)
    on_several_threads()
    forked(on_one_thread)
    check_loader("fork", 2, expected)
    check_loader("spawn", 1, expected)


def check_fork_beside_an_unroll(on_one_thread):
    """The thread that is in the model is not in the fork, to leave it."""
    model = ConvNet(3, 1, width=4, depth=1, image_size=8)
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with alone_in(model), differentiable_attention():
            entered.set()
            leave.wait()

    def child():
        assert torch.backends.cuda.flash_sdp_enabled()
        with alone_in(model), differentiable_attention():
            on_one_thread()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    try:
        forked(child)
    finally:
        leave.set()
        thread.join()


def check_loader(start_method, num_workers, expected):
    """A loader's workers run on one thread each."""
    loader = DataLoader(
        Cases(), batch_size=None, num_workers=num_workers, multiprocessing_context=start_method
    )
    for threads, found in loader:
        assert (threads, same(found, expected)) == (1, [])


if __name__ == "__main__":
    main()
