"""What stands for the GPU's tools in a rehearsal: they run the command, and speak alike."""

from pathlib import Path

_RUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do
  shift
  shift
done
"""
_SANITIZER = '"$@" || exit\necho "========= ERROR SUMMARY: 0 errors"\n'
_COUNTERS = """"$@" || exit
echo "    Duration                      us       12.34"
echo "    Compute (SM) Throughput        %       56.70"
echo "    Memory Throughput              %       23.40"
echo "    Registers Per Thread    register/thread  168"
echo "    Achieved Occupancy             %       24.90"
"""


def write(folder: Path) -> None:
    """compute-sanitizer and ncu."""
    for name, end in (("compute-sanitizer", _SANITIZER), ("ncu", _COUNTERS)):
        path = folder / name
        path.write_text(_RUN + end, "utf-8")
        path.chmod(0o755)
