"""What a run leaves that does not depend on the clock: the same, whether it was stopped or not."""

import json

from mim4dd.distill.runs import RunDirectory


def untimed(rows):
    """Rows of metrics but for the seconds that they took."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def leavings(folder):
    """The bytes of a run's sets, and its metrics; a line cut off is an error."""
    run = RunDirectory(folder)
    sets = [run.initial, run.synthetic, *sorted(run.sets.iterdir() if run.sets.exists() else ())]
    rows = [json.loads(line) for line in run.metrics.read_bytes().splitlines()]
    assert all("seconds" in row for row in rows[:-1])
    return {path.name: path.read_bytes() for path in sets}, untimed(rows)
