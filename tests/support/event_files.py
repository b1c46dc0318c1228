"""TensorBoard's event files, read as TensorBoard reads them."""

import struct

import pytest


def events_of(path):
    """The records of an event file: a length, its checksum, the content, its checksum."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    content = path.read_bytes()
    events = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(proto.Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def scalars_of(events):
    """Values by step and name; where a session starts at a step, what was there is dropped."""
    found = {}
    for event in events:
        if event.HasField("session_log"):
            found = {key: value for key, value in found.items() if key[0] < event.step}
        for value in event.summary.value:
            if not value.HasField("image"):
                assert (event.step, value.tag) not in found
                found[event.step, value.tag] = value.simple_value
    return found
