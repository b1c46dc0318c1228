"""Mutants of a source file: the file with one small thing changed, as a slip of the hand would.

C++ is read by regular expressions, which rely on clang-format: binary operators have spaces around
them, angle brackets of templates have none. Python is read by its syntax tree.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple


class Mutant(NamedTuple):
    """One change: characters [begin, end) of a file become ``replacement``."""

    file: str
    begin: int
    end: int
    replacement: str
    operator: str

    def of(self, text: str) -> str:
        return text[: self.begin] + self.replacement + text[self.end :]

    def described(self, text: str) -> dict[str, str | int]:
        """What a line of the results says; ``key`` changes with any change of the file."""
        whole = hashlib.sha1(f"{self.file}\n{self.of(text)}".encode()).hexdigest()
        return {
            "key": whole[:12],
            "file": self.file,
            "line": text.count("\n", 0, self.begin) + 1,
            "operator": self.operator,
            "before": text[self.begin : self.end],
            "after": self.replacement,
        }


def mutants_of(file: str, text: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its text."""
    changes = _of_python(text) if file.endswith(".py") else _of_cpp(text)
    return sorted({Mutant(file, *change) for change in changes if change[2] is not None})


Change = tuple[int, int, str, str]  # begin, end, replacement, operator

SWAPPED = {
    "+": "-", "-": "+", "*": "/", "/": "*", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
    "==": "!=", "!=": "==", "&&": "||", "||": "&&", "+=": "=", "-=": "+=", "*=": "=",
}  # fmt: skip
CONSTANTS = {"0": "1", "1": "0", "true": "false", "false": "true"}

# What no mutant touches: comments, strings, the preprocessor's lines; checks, and mere hints.
HIDDEN = re.compile(
    r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\])'|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*",
    re.DOTALL | re.MULTILINE,
)
CHECKS = re.compile(r"\b(?:static_assert|STD_TORCH_CHECK|TORCH_ERROR_CODE_CHECK|\w+\.reserve)\(")
SWAP = re.compile(r"(?<= )(?:[<>=!]=|[-+*]=|&&|\|\||[-+*/<>])(?= )")
CONSTANT = re.compile(r"(?<![\w.])(?<!> )(?:0|1|true|false)(?![\w.])")
TERM = re.compile(
    r" [-+*/] (?:[A-Za-z_][\w.:]*(?:->\w+)*|\d[\w.]*)(?:\([^()]*\)|\[[^\[\]]*\])*(?=\s*[;,)\]])"
)
CONDITION = re.compile(r"\b(?:if|while) \(")
NO_STATEMENT = re.compile(
    r"(?:return|using|const|constexpr|static|struct|class|template|if|for|while|else|case|break"
    r"|continue|default|namespace|friend|throw|public|private|switch|do|inline|extern|enum)\b"
)
ASSIGNED_OR_CALLED = re.compile(r" [-+*/|&]?= |\(")


def _of_cpp(text: str) -> Iterator[Change]:
    code = HIDDEN.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    for check in CHECKS.finditer(code):
        end = _closing(code, check.end() - 1)
        code = code[: check.start()] + re.sub(r"[^\n]", " ", code[check.start() : end]) + code[end:]
    for found in SWAP.finditer(code):
        yield *found.span(), SWAPPED[found[0]], "swap"
    for found in CONSTANT.finditer(code):
        yield *found.span(), CONSTANTS[found[0]], "constant"
    for found in TERM.finditer(code):
        yield *found.span(), "", "drop term"
    for found in CONDITION.finditer(code):
        begin, end = found.end(), _closing(code, found.end() - 1) - 1
        if not code[begin:end].startswith("constexpr"):
            yield begin, end, f"!({text[begin:end]})", "negate"
    for begin, end in _statements(code):
        yield begin, end, "", "drop statement"


def _closing(code: str, opening: int) -> int:
    """The place behind the bracket that closes the one at ``opening``."""
    depth = 0
    for place in range(opening, len(code)):
        depth += (code[place] == "(") - (code[place] == ")")
        if depth == 0:
            return place + 1
    return len(code)


def _statements(code: str) -> Iterator[tuple[int, int]]:
    """Assignments and calls that stand alone, without their semicolon."""
    brackets, begin = [], 0
    for place, character in enumerate(code):
        if character in "({[":
            brackets.append(character)
        elif character in ")}]" and brackets:
            brackets.pop()
        in_block = not brackets or brackets[-1] == "{"
        if character in "{}" or (character == ";" and in_block):
            first = begin + len(code[begin:place]) - len(code[begin:place].lstrip())
            if character == ";" and _stands_alone(code[first:place]):
                yield first, place
            begin = place + 1


def _stands_alone(statement: str) -> bool:
    found = ASSIGNED_OR_CALLED.search(statement)
    if not found or NO_STATEMENT.match(statement) or not re.match(r"[A-Za-z_*]", statement):
        return False
    # A declaration has a type, a space and a name.
    place = re.sub(r"<[^<>]*>|\[[^\[\]]*\]", "", statement[: found.start()])
    return " " not in place.strip()


PYTHON_SWAPPED: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def _of_python(text: str) -> Iterator[Change]:
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = text.splitlines()

    def place(line: int, column: int) -> int:  # columns count bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    for node in _code_of(ast.parse(text)):
        for old, new, operator in _changes_of(node):
            begin = place(old.lineno, old.col_offset)
            end = place(old.end_lineno, old.end_col_offset)
            yield begin, end, new if isinstance(new, str) else f"({ast.unparse(new)})", operator


def _code_of(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of what is computed: no annotation, no message of an error, no docstring."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            skipped = isinstance(child, ast.Raise | ast.Import | ast.ImportFrom | ast.JoinedStr)
            if not isinstance(child, ast.AST) or skipped:
                continue
            if hasattr(child, "lineno"):
                yield child
            yield from _code_of(child)


def _changes_of(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST | str, str]]:
    """What is replaced, by what, and the name of the change."""
    match node:
        case ast.BinOp(left, operation, right):
            if swap := PYTHON_SWAPPED.get(type(operation)):
                yield node, ast.BinOp(left, swap(), right), "swap"
                yield node, left, "drop term"
        case ast.Compare(left, [operation], others):
            if swap := PYTHON_SWAPPED.get(type(operation)):
                yield node, ast.Compare(left, [swap()], others), "swap"
        case ast.BoolOp(operation, values):
            yield node, ast.BoolOp(PYTHON_SWAPPED[type(operation)](), values), "swap"
        case ast.If(test) | ast.While(test) | ast.IfExp(test):
            yield test, ast.UnaryOp(ast.Not(), test), "negate"
        case ast.Constant(bool(value)):
            yield node, str(not value), "constant"
        case ast.Constant(int(value)) if value in (0, 1):
            yield node, str(1 - value), "constant"
        case ast.AugAssign(target, _, value):
            yield node, f"{ast.unparse(target)} = {ast.unparse(value)}", "swap"
            yield node, "pass", "drop statement"
        case ast.Expr(value) if not isinstance(value, ast.Constant):
            yield node, "pass", "drop statement"
