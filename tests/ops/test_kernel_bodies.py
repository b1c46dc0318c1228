"""How long Triton's functions are, how much they are handed, and what their cases compile."""

import ast
import importlib

import pytest
from places import ROOT

KERNELS = ROOT / "kernels"
FUNCTIONS = {
    f"{path.stem}.{node.name}": node
    for path in sorted(KERNELS.glob("*.py"))
    for node in ast.parse(path.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
    and any(ast.unparse(each).startswith("triton.jit") for each in node.decorator_list)
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_bodies_are_short_and_arguments_few(name):
    node = FUNCTIONS[name]
    assert len(node.args.args) <= 16
    assert node.end_lineno - node.lineno + 1 <= 80


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_no_constant_comes_from_a_function_of_the_gpu(name):
    """What that returns is a tensor to Triton 3.6; triton.constexpr_function is for constants."""
    jitted = {each.rpartition(".")[2] for each in FUNCTIONS}
    for node in ast.walk(FUNCTIONS[name]):
        if isinstance(node, ast.AnnAssign):
            calls = {ast.unparse(c.func) for c in ast.walk(node.value) if isinstance(c, ast.Call)}
            assert not calls & jitted, ast.unparse(node)


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


SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, [R2] ;
        /*0020*/              @!P0 STS.128 [R8], R4 ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0050*/                   LDGSTS.E.BYPASS.128 [R8], [R2.64] ;
.L_x_3:
        /*0060*/                   MUFU.EX2 R4, R4 ;
        /*0070*/             @!UP0 BRA `(.L_x_3) ;
        /*0080*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0090*/               @P2 BRA `(.L_x_2) ;
        /*00a0*/                   EXIT ;
.L_x_4:
        /*00b0*/                   BRA `(.L_x_4) ;
        /*00c0*/                   NOP ;
"""


def test_loops_of_machine_code_and_what_they_execute():
    pytest.importorskip("triton")
    from sass import Loop, Program

    program = Program.read(SASS)
    assert program.loops() == [Loop(1, 4), Loop(5, 9), Loop(6, 7), Loop(11, 11)]
    assert [*program.innermost()] == [Loop(1, 4), Loop(6, 7), Loop(11, 11)]
    assert program.count(Loop(1, 4)) == {
        "all": 4,
        "global": 1,
        "shared": 1,
        "tensor": 1,
        "other": 1,
    }
    assert program.count(Loop(5, 9))["async copy"] == 1
    assert program.count(Loop(5, 9))["special"] == 1


def test_loops_that_wait_for_their_tiles_are_told():
    pytest.importorskip("triton")
    from resources import waits
    from sass import Program

    assert waits(Program.read(SASS)).startswith("tiles that are waited for")
    pipelined = SASS.replace("LDG.E.128 R4,", "LDGSTS.E.BYPASS.128 [R8],")
    assert waits(Program.read(pipelined)) == ""
    # Over keys that are left out a loop lies within, and Triton pipelines no other.
    assert waits(Program.read("\n".join(SASS.split(".L_x_2:")[1:]))) == ""
