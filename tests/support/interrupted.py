"""`mim4dd`, which a signal stops while it writes a row of its metrics, whatever else runs here.

    python interrupted.py SIGINT ROW COMMAND…

A rank that torchrun started has it sent to all ranks, as who stops torchrun does.
"""

import os
import signal
import sys
import time


def stop_at(row: int, number: int) -> None:
    """Send it when the metrics are opened for the ``row``-th time to write; wait until it came."""
    opened, came = 0, False

    def watch(event: str, arguments: tuple) -> None:
        nonlocal opened
        if event != "open" or not str(arguments[0]).endswith("metrics.jsonl"):
            return
        if "a" in (arguments[1] or ""):  # os.open, which it is opened by, says no mode
            opened += 1
            if opened == row:
                send()

    def send() -> None:
        handle = signal.getsignal(number)

        def arrive(*arguments: object) -> None:
            nonlocal came
            came = True
            handle(*arguments)

        signal.signal(number, arrive)
        os.kill(os.getppid() if "RANK" in os.environ else os.getpid(), number)
        while not came:
            time.sleep(0.01)

    sys.addaudithook(watch)


if __name__ == "__main__":
    from mim4dd.__main__ import main

    _, name, row, *command = sys.argv
    # A shell starts what runs in the background with Ctrl-C ignored, tests and all.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop_at(int(row), signal.Signals[name])
    sys.argv = ["mim4dd", *command]
    main()
