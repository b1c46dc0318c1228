"""The mutants that `make mutation` tries: what they change, and what they leave alone."""

from fnmatch import fnmatch

import pytest
from mutation.mutants import mutants_of
from places import ROOT

CPP = """// a + b < 0
#pragma omp parallel if (n > 1)
static_assert(kRows == 1, "rows");
void scale(T* row, int64_t n) {
  STD_TORCH_CHECK(n >= 0, "n must not be negative, got ", n);
  const T sum = first + at(n);
  for (int64_t i = 2; i < n; ++i) row[i] *= sum;
  if (wide) pad(row, "a + 0");
}
"""
PYTHON = '''def σ(x: "0 < 1") -> int:
    """Of x + 1."""
    total = x + y  # + 1
    total += x if x > z else y
    if not total:
        raise ValueError(f"got {x + 1}")
    log(total)
'''


def changed_lines(file, text):
    """(before, after) of the line that each mutant changes."""
    lines = []
    for mutant in mutants_of(file, text):
        pairs = zip(text.splitlines(), mutant.of(text).splitlines(), strict=True)
        lines += [(a.strip(), b.strip()) for a, b in pairs if a != b]
    return lines


def test_changes_of_cpp():
    total, loop, call = (
        "const T sum = first + at(n);",
        "for (int64_t i = 2; i < n; ++i) row[i] *= sum;",
        'if (wide) pad(row, "a + 0");',
    )
    assert sorted(changed_lines("x.cpp", CPP)) == sorted(
        [
            (total, "const T sum = first - at(n);"),
            (total, "const T sum = first;"),
            (loop, "for (int64_t i = 2; i <= n; ++i) row[i] *= sum;"),
            (loop, "for (int64_t i = 2; i < n; ++i) row[i] = sum;"),
            (call, 'if (!(wide)) pad(row, "a + 0");'),
        ]
    )


def test_changes_of_python():
    total, grown, test = "total = x + y  # + 1", "total += x if x > z else y", "if not total:"
    assert sorted(changed_lines("x.py", PYTHON)) == sorted(
        [
            (total, "total = (x - y)  # + 1"),
            (total, "total = (x)  # + 1"),
            (grown, "total = x if x > z else y"),
            (grown, "pass"),
            (grown, "total += x if (x >= z) else y"),
            (grown, "total += x if (not x > z) else y"),
            (test, "if (not not total):"),
            ("log(total)", "pass"),
        ]
    )


@pytest.mark.parametrize("room", ["csrc/*.cpp", "csrc/*.h", "csrc/*.inl", "kernels/*.py"])
def test_every_mutant_of_a_source_is_another_text(room):
    for path in sorted(ROOT.glob(room))[::4]:
        text = path.read_text()
        mutants = mutants_of(path.name, text)
        assert all(mutant.of(text) != text for mutant in mutants)
        keys = [mutant.described(text)["key"] for mutant in mutants]
        assert len(keys) == len(set(keys)), path.name


def test_every_named_test_is_there():
    table = (ROOT / "tests" / "mutation" / "tests.txt").read_text().splitlines()
    sources = [
        p.relative_to(ROOT).as_posix() for r in ("csrc", "kernels") for p in ROOT.glob(f"{r}/*")
    ]
    for patterns, tests in (line.split(":") for line in table if not line.startswith("#")):
        for name in tests.split():
            folder = ROOT / "tests" / name
            assert folder.is_dir() if "/" in name else list((ROOT / "tests").rglob(f"{name}.py"))
        for pattern in patterns.split():
            assert pattern.startswith("mim4dd/") or any(fnmatch(s, pattern) for s in sources)
