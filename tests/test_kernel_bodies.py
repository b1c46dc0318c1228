"""How long Triton's functions are, how much they are handed, and what their cases compile."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "kernels"
FUNCTIONS = {
    f"{path.stem}.{node.name}": node
    for path in sorted(ROOT.glob("*.py"))
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
    and any(ast.unparse(each).startswith("triton.jit") for each in node.decorator_list)
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_bodies_are_short_and_arguments_few(name):
    node = FUNCTIONS[name]
    assert len(node.args.args) <= 16
    assert node.end_lineno - node.lineno + 1 <= 80


@pytest.mark.parametrize("op", ["clip_loss", "contrastive", "norm_relu_pool"])
def test_cases_give_every_argument_a_type_or_a_value(op):
    pytest.importorskip("triton")
    for case in importlib.import_module(f"mim4dd.kernels.{op}").compilations():
        places = {}
        for index, kind in enumerate(case.signature.values()):
            fields = enumerate(kind) if isinstance(kind, tuple) else [(None, kind)]
            places |= {(index,) if i is None else (index, i): each for i, each in fields}
        assert list(case.signature) == list(case.kernel.arg_names)
        assert {p for p, kind in places.items() if kind == "constexpr"} == case.constants.keys()
        assert {p for p, kind in places.items() if kind[0] == "*"} == set(case.pointers())


def test_a_misspelt_constant_is_refused():
    triton = pytest.importorskip("triton")
    import torch

    from mim4dd.kernels._ahead_of_time import compilation
    from mim4dd.kernels._norm_relu_pool_backward import backward_kernel

    assert triton
    with pytest.raises(ValueError, match=r"backward_kernel has no arguments \['maps.tangents'\]"):
        compilation("backward", backward_kernel, torch.float32, (), {"maps.tangents": None})


def test_instructions_that_tiles_need_not_are_told():
    pytest.importorskip("triton")
    from resources import slow

    from mim4dd.kernels import _gradient

    case = next(case for case in _gradient.compilations() if "bfloat16" in case.name)
    wide = "ld.global.v4.b32 x; cp.async.cg.shared.global [a], [b], 16; wgmma.mma_async"
    assert slow(case, 90, wide) == ""
    assert slow(case, 90, "@%p1 st.global.b16 [ %rd1 + 0 ]; " + wide).startswith(
        "1 loads and stores"
    )
    assert slow(case, 90, "mma.sync.aligned") == "products without WGMMA"
    assert slow(case, 80, "mma.sync.aligned") == ""
