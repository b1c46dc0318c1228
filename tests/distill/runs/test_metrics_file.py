"""metrics.jsonl as it is read again: whole rows, and what a crash left of the last one."""

import json

from mim4dd.distill.runs import RunDirectory


def test_a_last_row_counts_where_it_is_whole(tmp_path):
    run = RunDirectory(tmp_path)
    rows = [{"iteration": index, "loss": index / 2} for index in range(3)]
    text = "\n".join(map(json.dumps, rows))
    for end, count in (("\n", 3), ("", 3), ('\n{"iteration": 3, "lo', 3), ("\n{", 3)):
        run.metrics.write_text(text + end)
        assert run.read_metrics() == rows[:count]
    run.metrics.write_text(text[:-1])
    assert run.read_metrics() == rows[:2]
