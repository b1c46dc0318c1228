"""What compiling a Triton kernel without a GPU takes; bench/resources.py does it."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_type_hints

import torch
from triton.runtime import JITFunction

POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}

CAPABILITIES = (80, 90, 100)
EVERY_CASE = (90,)  # the others compile of each kernel and its tiles what takes most

LAUNCH = {"num_warps", "num_stages", "enable_fp_fusion", "maxnreg"}

# Each query leaves out one key: Triton makes a constant of an argument that is 1.
SINGLE = {"pairs.num_excluded": 1}


class Compilation(NamedTuple):
    """One kernel with the types and constants of one way of launching it.

    An argument, or a field of one, is named by its place: ``(2,)``, ``(2, 0)``.
    """

    name: str
    kernel: JITFunction
    signature: dict[str, Any]  # a type, or a NamedTuple of types, by the argument's name
    constants: dict[tuple[int, ...], Any]
    options: dict[str, int | bool]
    capabilities: tuple[int, ...]
    divisible: tuple[tuple[int, ...], ...] | None = None  # by 16; None: every pointer

    def pointers(self) -> Iterator[tuple[int, ...]]:
        """The place of each."""
        for index, kind in enumerate(self.signature.values()):
            if isinstance(kind, tuple):
                yield from ((index, i) for i, field in enumerate(kind) if field.startswith("*"))
            elif kind.startswith("*"):
                yield (index,)


def compilation(
    name: str,
    kernel: JITFunction,
    dtype: torch.dtype,
    narrow: tuple[str, ...],
    constants: Mapping[str, Any],
    capabilities: tuple[int, ...] | None = None,
) -> Compilation:
    """A case by the kernels' naming: ``*_ptr`` hold the accumulation type, ``narrow`` the inputs'.

    So do the fields of a NamedTuple, which the kernel's annotation names, where they are no int.
    Labels and tables are int64, everything else that is no constant an int32. ``"argument.field"``
    names a field: always as a constant, and where its own name is not enough in ``narrow``.

    Without ``capabilities``, float64, whose values take two registers each, is for all of them.
    """
    if capabilities is None:
        capabilities = CAPABILITIES if dtype == torch.float64 else EVERY_CASE
    wide = POINTERS[torch.promote_types(dtype, torch.float32)]
    pointers = dict.fromkeys(narrow, POINTERS[dtype])
    pointers |= dict.fromkeys(("labels_ptr", "labels", "key_labels", "table_ptr"), "*i64")
    pointers |= dict.fromkeys(("excluded", "statistics.labels", "stretches"), "*i32")
    pointers |= dict.fromkeys(("begin", "end", "first", "last", "counts"), "*i32")
    pointers |= dict.fromkeys(("query_order", "key_order"), "*i64")
    signature: dict[str, Any] = {}
    values: dict[tuple[int, ...], Any] = {}
    options = dict(constants)

    def kind_of(place: tuple[int, ...], name: str, pointer: bool) -> str:
        if name in options:
            values[place] = options.pop(name)
            return "constexpr"
        field = name.rpartition(".")[2]
        return pointers.get(name, pointers.get(field, wide)) if pointer else "i32"

    for index, argument in enumerate(kernel.arg_names):
        group = kernel.fn.__annotations__.get(argument)
        if hasattr(group, "_fields"):
            hints = get_type_hints(group)
            signature[argument] = group(
                *(
                    kind_of((index, i), f"{argument}.{field}", hints[field] is not int)
                    for i, field in enumerate(group._fields)
                )
            )
        else:
            signature[argument] = kind_of((index,), argument, argument.endswith("_ptr"))
    unknown = options.keys() - LAUNCH
    if unknown:
        raise ValueError(f"{kernel.fn.__name__} has no arguments {sorted(unknown)}")
    name = f"{name} {dtype}".replace("torch.", "")
    return Compilation(name, kernel, signature, values, options, capabilities)
