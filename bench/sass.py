"""The machine code of a compiled kernel: its loops, and what a pass through one executes."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import triton

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_LABEL = re.compile(r"\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
# By their first letters; what is not here is "other", which takes an issue slot as all do.
UNITS = {
    "tensor": ("HGMMA", "HMMA", "IMMA", "DMMA", "QGMMA", "UTCHMMA"),
    "special": ("MUFU",),
    "double": ("DFMA", "DMUL", "DADD", "DSETP"),
    "shuffle": ("SHFL", "REDUX"),
    "shared": ("LDS", "STS", "LDSM", "STSM"),
    "async copy": ("LDGSTS", "UTMALDG", "UBLKCP"),
    "global": ("LDG", "STG", "LD.", "ST."),
    "spilled": ("LDL", "STL"),
}


class Instruction(NamedTuple):
    opcode: str  # without what predicates it
    target: int | None  # of a branch: place of the instruction


class Loop(NamedTuple):
    """Instructions from where a branch goes back to up to that branch."""

    first: int
    last: int

    def holds(self, other: "Loop") -> bool:
        """Whether the other lies within."""
        return self != other and self.first <= other.first and other.last <= self.last


class Program(NamedTuple):
    """The instructions of a kernel."""

    instructions: list[Instruction]

    @classmethod
    def of(cls, cubin: bytes) -> "Program":
        """By the disassembler that comes with Triton."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            command = [str(_TOOLS / "nvdisasm"), "-c", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return cls.read(text)

    @classmethod
    def read(cls, text: str) -> "Program":
        """What nvdisasm prints."""
        found, labels = [], {}
        for line in text.splitlines():
            if label := _LABEL.match(line):
                labels[label[1]] = len(found)
            elif match := _INSTRUCTION.match(line):
                target = _TARGET.search(match[2]) if match[1].startswith("BRA") else None
                found.append((match[1], target and target[1]))
        return cls([Instruction(opcode, labels.get(target)) for opcode, target in found])

    def loops(self) -> list[Loop]:
        """Every one, in order; several branches back to one place are one loop."""
        ends: dict[int, int] = {}
        for place, (_, target) in enumerate(self.instructions):
            if target is not None and target <= place:
                ends[target] = place
        return [Loop(first, last) for first, last in sorted(ends.items())]

    def innermost(self) -> Iterator[Loop]:
        """Those that hold no other."""
        loops = self.loops()
        yield from (loop for loop in loops if not any(map(loop.holds, loops)))

    def count(self, loop: Loop) -> Counter[str]:
        """Warp instructions of a pass, all of them and by unit; padding is none."""
        return count(each.opcode for each in self.instructions[loop.first : loop.last + 1])


def count(opcodes: Iterator[str] | Sequence[str]) -> Counter[str]:
    """Of instructions: how many, and by unit."""
    counts: Counter[str] = Counter()
    for opcode in opcodes:
        if opcode != "NOP":
            counts["all"] += 1
            counts[unit(opcode)] += 1
    return counts


def unit(opcode: str) -> str:
    """What executes it."""
    named = (name for name, starts in UNITS.items() if opcode.startswith(starts))
    return next(named, "other")
