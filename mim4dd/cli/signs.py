"""What the command line prints where an encoding lacks a sign of ours."""

import codecs
import io
import unicodedata
from collections.abc import Iterable
from typing import TextIO

__all__ = ["print_any_sign"]

_PLAIN = {"±": "+-", "–": "-", "−": "-", "→": "->", "≤": "<=", "…": "...", "×": "x", "‖": "|"}


def print_any_sign(streams: Iterable[TextIO | None]) -> None:
    """Have the streams print ASCII for a sign that they cannot encode, instead of raising.

    A locale of a container or an old terminal is often ASCII or Latin-1. The bytes of a file name
    that are no text are printed as they are.
    """
    codecs.register_error("mim4dd.signs", _replaced)
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):  # what stands in for it decides for itself
            stream.reconfigure(errors="mim4dd.signs")


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if "\udc80" <= sign <= "\udcff":  # a byte of a file name, as Python holds one
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    return _PLAIN.get(sign) or _letter(sign), error.start + 1


def _letter(sign: str) -> str:
    """A Greek letter by its name; "?" for what has none."""
    name = unicodedata.name(sign, "")
    return name.rpartition(" ")[2].lower() if name.startswith("GREEK SMALL LETTER ") else "?"
