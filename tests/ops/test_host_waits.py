"""The host launches the kernels of a loss and waits for none: no value decides what it does."""

import pytest
import torch
from contrastive_cases import Case, kernels
from torch.utils._python_dispatch import TorchDispatchMode

from mim4dd.reference import Critic, Kind, Reduce

aten = torch.ops.aten
# What takes a value, or a size that values decide, from the device.
WAITS = {
    aten._local_scalar_dense,
    aten._unique2,
    aten.bincount,
    aten.equal,
    aten.is_nonzero,
    aten.item,
    aten.masked_select,
    aten.nonzero,
    aten.repeat_interleave,
    aten.unique_consecutive,
    aten.unique_dim,
}


class Watch(TorchDispatchMode):
    """Refuses operations for which the host would wait, were the tensors on a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if func.overloadpacket in WAITS or by_mask:
            raise AssertionError(f"the host waits for {func}")
        return func(*args, **(kwargs or {}))


def launch(case, critic):
    """Loss and gradients in one call, and gradients of other upstreams."""
    wanted = [True, True, True, case.bias is not None]
    case.call(kernels().contrastive, critic, Reduce.MEAN, wanted)
    *_, lse, weight, _ = case.call(kernels().contrastive, critic, Reduce.NONE, [False] * 4)
    upstream = (case.grad_loss, case.grad_lse)
    case.call(kernels().contrastive_bwd, critic, lse, weight, *upstream, wanted)


@pytest.mark.parametrize(
    ("critic", "dtype", "options"),
    [
        (Critic(), torch.bfloat16, {"by_index": True}),
        (Critic(), torch.float16, {}),
        (Critic(), torch.bfloat16, {"num_excluded": 3}),
        (Critic(Kind.IN, normalize=True), torch.float32, {}),
        (Critic(Kind.NCE), torch.float32, {"bias": 0.3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dims", [[16], [16, 40, 8]], ids=str)
def test_no_value_decides_what_the_host_does(
    critic, dtype, options, dims, kernel_device, monkeypatch
):
    """The widest layer is chunked."""
    monkeypatch.setattr(kernels(), "fuses", lambda query, key: query.shape[1] < 40)
    case = Case((9, 13, dims), dtype, kernel_device, **options)
    if kernel_device == "cpu":
        with Watch():
            launch(case, critic)
        return
    launch(case, critic)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        launch(case, critic)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_waits_are_seen():
    for wait in (
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: x.unique(),
    ):
        with pytest.raises(AssertionError, match="the host waits"), Watch():
            wait(torch.randn(3))
