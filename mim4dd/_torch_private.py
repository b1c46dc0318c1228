"""All that PyTorch keeps to itself and the package uses: what it does, and why nothing public does.

Nothing else in the package names what is private to torch.
tests/ops/test_torch_private.py holds what each is relied on for, so that a new torch which breaks
one says which.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

# Within it an op runs the kernel of its device, not its derivative's rule. The public way down,
# no_grad, stays on the level of autograd: the rule would call itself again.
below_autograd = torch._C._AutoDispatchBelowAutograd

# Whether torch.func.grad, jvp, vmap or functionalize is going on. Nothing public tells.
are_functorch_transforms_active = torch._C._are_functorch_transforms_active

# What torch.func makes of a tensor: any of it; batched by torch.vmap; batched by the older vmap of
# is_grads_batched and vectorize; tracked by grad or jvp, with the tensor within. Public functions
# see through the wrapping.
is_functorch_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
is_batched = torch._C._functorch.is_batchedtensor
is_batched_by_older_vmap = torch._C._functorch.is_legacy_batchedtensor
is_tracked = torch._C._functorch.is_gradtrackingtensor
unwrapped = torch._C._functorch.get_unwrapped

# An axis hidden in the older vmap's level, and shown again. torch.library.register_vmap reaches the
# newer one alone.
add_batch_dim = torch._add_batch_dim
remove_batch_dim = torch._remove_batch_dim

# Whether the backward pass under way keeps its graph (retain_graph, create_graph), so that what was
# saved may be needed again. A node learns of it nowhere else.
keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph

# Require a tensor of one bool to be true, without waiting for its device. The public ways wait.
assert_async = torch._assert_async

# Nested tuples, lists and dicts taken apart and put together as torch.func does. torch.utils.pytree
# is public and came after the oldest torch that the package supports.
tree_flatten = _pytree.tree_flatten
tree_unflatten = _pytree.tree_unflatten
tree_map = _pytree.tree_map
tree_map_only = _pytree.tree_map_only


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is going on. unpack_dual alone would break a graph."""
    return torch.autograd.forward_ad._current_level >= 0


def older_vmap_level() -> int:
    """The innermost level of the older vmap, from 1 on; 0 outside. Only changing it tells."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def has_saved_tensors_hooks() -> bool:
    """Whether saved_tensors_hooks are set, as by a checkpoint. In public they are only set."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def version(tensor: Tensor) -> int:
    """How often a tensor was changed in place. Autograd alone reads it, when it raises."""
    return tensor._version


def children(module: nn.Module) -> dict[str, Any]:
    """The submodules by name, to be replaced; named_children leaves out what is there twice."""
    return module._modules
