"""`mim4dd experts` and `mim4dd buffer`, as a user types them."""

import sys
from pathlib import Path

import pytest
from command_line import DISTILL, EXPERTS


@pytest.mark.filterwarnings("default:experts in again:UserWarning")
def test_experts_become_a_replay_buffer_and_experts_again(with_experts):
    mim4dd = with_experts
    assert mim4dd("buffer experts buffer")[:2] == (0, "buffer/replay_buffer_0.pt\n")
    status, out, _ = mim4dd("buffer buffer again --width 8")
    assert (status, out[:30]) == (0, "2 experts of 4 epochs in again")
    assert 0.5 < float(out.removesuffix("\n").rpartition(" ")[2]) <= 1  # accuracy of the first
    options = DISTILL.replace("--experts experts", "--experts again")
    status, _, err = mim4dd(f"distill {options} --iterations 1 --eval-every 0 --out run")
    assert status == 0
    assert "mim4dd: warning: experts in again do not say what they were trained on" in err
    Path("width.json").write_text('{"width": 8}')
    for command, message in (
        ("buffer experts other --config width.json", "its experts are; leave out --config\n"),
        ("buffer buffer wide", "parameter 0 is (8, 1, 3, 3), and (32, 1, 3, 3) in the network"),
        (
            "buffer experts other --width 8",
            "experts already says what its experts are; leave out --width",
        ),
        ("buffer run other", "run holds neither"),
    ):
        status, _, err = mim4dd(command)
        assert status == 1
        assert message in f"{err}\n"
    assert not Path("wide").exists()
    assert not Path("other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--workers 0", "workers must be at least 1"),
        ("--devices cpu,cpu", "workers must be at least the number of devices, got 1 for cpu,cpu"),
        ("--devices cpu,gpu", "devices must be a device that PyTorch knows, got 'gpu'"),
    ],
)
def test_workers_and_devices_that_cannot_be_are_refused(options, message, mim4dd):
    status, _, err = mim4dd(f"experts {EXPERTS} {options} --out experts")
    assert status == 1
    assert message in err
    assert not Path("experts").exists()


def test_a_missing_package_is_named(mim4dd, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    status, _, err = mim4dd(f"experts {EXPERTS} --out experts")
    assert status == 1
    assert "is missing; pip install 'mim4dd[distill]' brings it" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("mim4dd: sklearn")
