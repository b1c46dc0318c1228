"""What the C library does with memory that PyTorch frees on a CPU."""

import ctypes
import platform

__all__ = ["keep_freed_memory"]

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Have this process keep the memory it frees, for its next allocations.

    glibc gives every block above 32 MiB back to the system at once, and the end of its heap when
    that gets long. A training step frees all of its activations and the next one needs as many:
    their pages come back one fault at a time, each zeroed by the system first. That takes a quarter
    of an expert's CPU seconds, in virtual machines more. The price is that memory, once used, stays
    with the process until it ends; a program should decide that for itself, so the command line and
    worker processes call this, and no import does.

    Returns:
        Whether the C library is glibc, and took it.

    Example:
        >>> from mim4dd.distill.runtime.heap import keep_freed_memory
        >>> keep_freed_memory() in (True, False)
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No limit on the heap's end, and no block with a mapping of its own: M_MMAP_THRESHOLD, from
    # which size on a block has one, is documented to end at 32 MiB.
    return all(
        mallopt(option, value) == 1 for option, value in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0))
    )
