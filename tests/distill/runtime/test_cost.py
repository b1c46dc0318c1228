"""What a run cost, over all its processes."""

import time

import pytest
import torch

from mim4dd.distill.runtime import cost
from mim4dd.distill.runtime.cost import Meter, peak_bytes

CPU = torch.device("cpu")


def test_seconds_go_on_where_an_earlier_process_stopped():
    meter = Meter(CPU)
    busy_until = time.process_time() + 0.05
    while time.process_time() < busy_until:
        pass
    first = meter.read()
    assert first["cpu_seconds"] >= 0.05
    assert first["seconds"] > 0
    later = Meter(CPU)
    later.restore({**first, "iteration": 3})
    second = later.read()
    assert second.keys() == {"seconds", "cpu_seconds", "peak_bytes"}
    for name in ("seconds", "cpu_seconds"):
        assert first[name] <= second[name] < first[name] + 60


def test_the_peak_is_the_largest_of_all_processes(monkeypatch):
    meter = Meter(CPU)
    monkeypatch.setattr(cost, "peak_bytes", lambda device: 100)
    assert meter.read()["peak_bytes"] == 100
    meter.restore({"seconds": 0.0, "cpu_seconds": 0.0, "peak_bytes": 300})
    assert meter.read()["peak_bytes"] == 300
    monkeypatch.setattr(cost, "peak_bytes", lambda device: 400)
    assert meter.read()["peak_bytes"] == 400


def test_the_peak_holds_what_was_freed():
    before = peak_bytes(CPU)
    block = torch.ones(2**28, dtype=torch.uint8)
    during = peak_bytes(CPU)
    del block
    assert during >= 2**28
    assert during >= before
    assert peak_bytes(CPU) == pytest.approx(during, rel=0.05)
