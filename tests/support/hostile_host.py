"""The command line on a host that gives it little, in a folder that is the script's argument."""

import json
import os
import sys
import warnings
from pathlib import Path

from mim4dd.__main__ import main
from mim4dd.distill.runtime import cost, memory

FEW = "--width 8 --num-keys 40 --batch-real 8 --iterations 2 --num-eval 1 --eval-epochs 1"


def status_of(*command):
    sys.argv = ["mim4dd", *command]
    try:
        main()
    except SystemExit as stopped:
        return stopped.code or 0
    return 0


def statuses_of_commands(folder):
    """The exit status of each; those to ``absent`` must be refused."""
    absent = Path(os.devnull)  # no folder, not even to the system's administrator
    # /proc and /sys hold sizes of memory.
    cost._STATUS = memory._MEMINFO = memory._CGROUP = absent / "file"
    # Whoever reads text without naming its encoding reads other text on another host.
    warnings.filterwarnings("error", category=EncodingWarning, module="mim4dd")
    options = folder / "options.json"
    options.write_bytes('{"method": "dm", "data_path": "größe"}'.encode())
    run, table = str(folder / "run"), str(folder / "table.csv")
    once = ("--num-eval", "1", "--eval-epochs", "1")
    return {
        "doctor": status_of("doctor"),
        "help": status_of("distill", "--help"),
        "distill": status_of("distill", "--config", str(options), *FEW.split(), "--out", run),
        "evaluate": status_of("evaluate", run, *once, "--no-baselines", "--csv", table),
        "show": status_of("show", run, "--html", str(folder / "page.html")),
        "compare to nowhere": status_of("compare", "--out", str(absent / "out")),
        "evaluate to nowhere": status_of(
            "evaluate", run, "--csv", str(absent / "out" / "table.csv")
        ),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    statuses = statuses_of_commands(folder)
    (folder / "statuses.json").write_bytes(json.dumps(statuses).encode())
