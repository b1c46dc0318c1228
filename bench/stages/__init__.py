"""The stages of `make gpu`: processes of their own, which append what they find to one file.

What is imported first sees to it that they end with what has started them, lest they hold the GPU.
"""

import ctypes
import os
import signal
import sys

PARENT = "MIM4DD_STAGE_PARENT"  # environment variable: the process that supervises this one
_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Let the kernel kill this process once its parent is gone; at once where it is already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if PARENT in os.environ:
    die_with(int(os.environ.pop(PARENT)))
