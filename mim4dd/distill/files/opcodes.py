"""What a pickle would do, looked through before it is loaded."""

import pickletools
from typing import IO, Any

__all__ = ["require_plain_opcodes"]

_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})


def require_plain_opcodes(file: IO[bytes], size: int, longest: int) -> None:
    """Refuse a pickle that is small and would take much memory, or time.

    Python makes room for as many notes as the highest number of one. To hash a tuple of twice the
    same tuple, and so on, takes twice as long with each. What is said of a text may take the square
    of its length.

    Args:
        file: Where the pickle begins; it is read to the pickle's end.
        size: Bytes of the file: more notes than these there cannot be.
        longest: Characters that a text may have, or bytes that stand for one.

    Raises:
        ValueError: If it is truncated, or such a pickle.
    """
    last, noted, tuples = "", 0, set()
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if isinstance(argument, (str, bytes)) and len(argument) > longest:
            raise ValueError(f"it holds a text of {len(argument)} characters")
        if name in _PUTS:
            number = noted if argument is None else int(argument)
            if number > size:
                raise ValueError(f"it notes a value by the number {number}")
            if last in _TUPLES:
                tuples.add(number)
            noted += 1
        elif name == "DUP" or (name in _GETS and int(argument) in tuples):
            raise ValueError("it has one tuple in two places")
        last = name
