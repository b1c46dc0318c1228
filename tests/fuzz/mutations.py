"""Small changes to the bytes of a file: what a disk, a transfer or an attacker makes of it."""

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable

__all__ = ["MUTATIONS", "mutate"]

Mutation = Callable[[random.Random, bytes], bytes]

_NUMBERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)
_WORDS = (
    "0", "-1", "1e400", "NaN", "-Infinity", "null", "true", "[]", "{}", '""', '"../../escaped"',
    '"/etc/passwd"', "9" * 400, "9" * 5000, "[" * 300, "[" * 100_000, '"\\ud800"', "1.5", '"none"',
)  # fmt: skip
_TOKEN = re.compile(rb'-?\d+(?:\.\d+)?(?:e-?\d+)?|"[^"]{0,40}"|true|false|null')
_YAML_TAGS = (b"!!python/object/apply:os.system ['touch escaped']", b"!!binary x", b"!!set {a}",
              b"!!timestamp x", b"!!int 0b", b"!!float .", b"0000-00-00", b"&a [*a]")  # fmt: skip


def truncated(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def flipped(draw: random.Random, content: bytes) -> bytes:
    """A few bits, mostly near the beginning, where headers are."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if changed:
            end = draw.choice((64, 512, len(changed)))
            changed[draw.randrange(min(end, len(changed)))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flipped_at_the_end(draw: random.Random, content: bytes) -> bytes:
    """Where zip files have their directory."""
    changed = bytearray(content)
    if changed:
        changed[-1 - draw.randrange(min(400, len(changed)))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def set_bytes(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.choice((0, 255, draw.randrange(256)))
    return bytes(changed)


def swapped(draw: random.Random, content: bytes) -> bytes:
    """Two blocks in each other's place."""
    size = draw.choice((1, 4, 16, 64, 512))
    if len(content) < 2 * size:
        return content[::-1]
    first, second = sorted(draw.sample(range(len(content) - size + 1), 2))
    second = max(second, first + size)
    return (
        content[:first]
        + content[second : second + size]
        + content[first + size : second]
        + content[first : first + size]
        + content[second + size :]
    )


def doubled(draw: random.Random, content: bytes) -> bytes:
    """A block twice, or left out."""
    at = draw.randrange(len(content) + 1)
    size = draw.choice((1, 8, 64, 512))
    if draw.random() < 0.5:
        return content[:at] + content[at + size :]
    return content[: at + size] + content[at:]


def huge_number(draw: random.Random, content: bytes) -> bytes:
    """A number of a binary header that promises much."""
    kind = draw.choice(("<Q", "<q", "<I", ">I", "<H", "B"))
    size = struct.calcsize(kind)
    value = draw.choice(_NUMBERS) % 2 ** (8 * size - (kind == "<q"))
    end = draw.choice((16, 128, 1024, len(content)))
    at = draw.randrange(max(1, min(end, len(content)) - size + 1))
    return content[:at] + struct.pack(kind, value) + content[at + size :]


def replaced_word(draw: random.Random, content: bytes) -> bytes:
    """Another word or number in what is text, as JSON and the headers of safetensors are."""
    found = list(_TOKEN.finditer(content[:20_000]))
    if not found:
        return flipped(draw, content)
    token = draw.choice(found)
    word = draw.choice((*_WORDS, *[each.group().decode("latin1") for each in found[:20]]))
    return content[: token.start()] + word.encode("latin1") + content[token.end() :]


def replaced_in_header(draw: random.Random, content: bytes) -> bytes:
    """Another word in a safetensors header, with the length that then fits."""
    if len(content) < 8:
        return content
    size = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + size], content[8 + size :]
    header = replaced_word(draw, header)
    return len(header).to_bytes(8, "little") + header + rest


def changed_json(draw: random.Random, content: bytes) -> bytes:
    """A key less, one more, or another value, where all of it stays JSON."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return replaced_in_header(draw, content)
    spots = list(_spots(value))
    if not spots:
        return b"[]"
    holder, key = draw.choice(spots)
    how = draw.randrange(3)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[draw.choice(("", "unknown", "device", "data", "../x"))] = 1
    else:
        holder[key] = draw.choice(
            (None, 0, -1, 1e308, True, "", "x", [], [1, "a"], {}, {"kind": 1}, 10**400, [[]] * 3)
        )
    return json.dumps(value).encode()


def _spots(value: object) -> list[tuple[dict | list, object]]:
    if isinstance(value, dict):
        inner = [spot for part in value.values() for spot in _spots(part)]
        return [(value, key) for key in value] + inner
    if isinstance(value, list):
        inner = [spot for part in value[:8] for spot in _spots(part)]
        return [(value, index) for index in range(min(8, len(value)))] + inner
    return []


def tagged(draw: random.Random, content: bytes) -> bytes:
    """YAML's tags and aliases, in the place of a value."""
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    key = lines[at].partition(b":")[0]
    lines[at] = key + b": " + draw.choice(_YAML_TAGS)
    return b"\n".join(lines)


def repacked(draw: random.Random, content: bytes) -> bytes:
    """A zip file with a member compressed, renamed, changed, left out or twice."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as source:
            members = [(info.filename, source.read(info)) for info in source.infolist()]
    except Exception:  # what another change left is no zip file
        return flipped(draw, content)
    if not members:
        return content
    at, how = draw.randrange(len(members)), draw.randrange(5)
    name, inner = members[at]
    if how == 0:
        members[at] = (draw.choice(("../escaped", "/tmp/escaped", "data.pkl", name + "x")), inner)
    elif how == 1:
        members[at] = (name, mutate(draw, inner, repack=False))
    elif how == 2:
        del members[at]
    elif how == 3:
        members.append((name, inner[::-1]))
    packed, target = draw.choice((0, 8)), io.BytesIO()
    with zipfile.ZipFile(target, "w", packed) as archive:
        for name, inner in members:
            archive.writestr(name, inner)
    return target.getvalue()


def emptied(draw: random.Random, content: bytes) -> bytes:
    return draw.choice((b"", b"\x00" * len(content), b"\xff" * 64, b"PK\x05\x06" + bytes(18)))


MUTATIONS: tuple[Mutation, ...] = (
    truncated,
    flipped,
    flipped,
    flipped_at_the_end,
    set_bytes,
    swapped,
    doubled,
    huge_number,
    huge_number,
    replaced_word,
    replaced_in_header,
    changed_json,
    changed_json,
    emptied,
)


def mutate(
    draw: random.Random, content: bytes, *, repack: bool = True, yaml: bool = False
) -> bytes:
    """``content`` changed once or twice."""
    kinds = [*MUTATIONS, *[repacked] * (3 * repack), *[tagged] * (3 * yaml)]
    for _ in range(draw.choice((1, 1, 1, 2))):
        content = draw.choice(kinds)(draw, content)
    return content
