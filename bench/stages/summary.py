"""The results of `make gpu` for people: of any results file, complete or not."""

from collections import Counter
from collections.abc import Iterable

import report
from rows import load_rows

from stages.commit import find
from stages.records import BEGUN, FAILED, OK, SKIPPED, STOPPED, Record

PLAN = "plan"  # the stage whose cases are the parts
_WRONG = (FAILED, STOPPED, BEGUN)
_LINES = 12  # of an error


def summary(records: dict[tuple[str, str], Record]) -> str:
    """What ran, what was wrong, what it took."""
    every = [record for record in records.values() if record.stage != PLAN]
    by_case = {(r.stage, r.case): r.found for r in every}
    parts = [
        heading(by_case),
        "## Parts\n\n" + table(parts_of(records)),
        "## Wrong\n\n" + ("\n".join(map(told, wrong(records))) or "Nothing."),
        "## Ceilings\n\n" + figures(r for r in every if r.stage == "ceilings"),
        "## Times\n\n" + times(every),
        "## Tiles\n\n" + figures(r for r in every if r.stage == "tiles"),
        "## Counters\n\n" + figures(r for r in every if r.stage == "counters"),
        *(
            f"## Profile: {r.case}\n\n```\n{r.found['table']}\n```"
            for r in every
            if "table" in r.found
        ),
    ]
    return "\n\n".join(parts) + "\n"


def heading(found: dict[tuple[str, str], dict]) -> str:
    """The machine, and which sources."""
    versions, sources = found.get(("smoke", "versions"), {}), found.get(("smoke", "sources"), {})
    trees = sources.get("trees", {})
    commit = sources.get("commit") or (find(trees) if trees else None)
    names = ", ".join(f"{folder} {name[:12]}" for folder, name in trees.items())
    lines = [
        f"# {versions.get('gpu', 'no GPU: a rehearsal')}",
        f"Commit {commit or 'none that is known here'}; git's names of the folders: {names}.",
        ", ".join(f"{name} {value}" for name, value in versions.items() if name != "gpu"),
        f"```\n{found.get(('smoke', 'doctor'), {}).get('text', '')}\n```",
    ]
    return "\n\n".join(lines)


def parts_of(records: dict[tuple[str, str], Record]) -> list[list[str]]:
    """A row for each part: its cases, its seconds, and why it ended before its last case."""
    rows = [["part", "seconds", "ok", "skipped", "wrong", "ended early"]]
    for record in (r for r in records.values() if r.stage == PLAN):
        stages = set(record.found.get("stages", ()))
        count = Counter(r.status for r in records.values() if r.stage in stages)
        early = record.error if record.status != BEGUN else "killed"
        wrong = sum(count[status] for status in _WRONG)
        numbers = [f"{record.seconds:.0f}", count[OK], count[SKIPPED], wrong]
        rows.append([record.case, *map(str, numbers), early])
    return rows


def table(rows: list[list[str]]) -> str:
    """Of Markdown, the first row its head."""
    head, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *others])


def wrong(records: dict[tuple[str, str], Record]) -> list[Record]:
    """What failed, crashed, hung or was cut off."""
    return [r for r in records.values() if r.status in _WRONG and r.stage != PLAN]


def told(record: Record) -> str:
    """One of them."""
    lines = record.error.strip().splitlines()[-_LINES:]
    return "\n".join(
        [f"- {record.stage}, {record.case}: {record.status}", *(f"      {line}" for line in lines)]
    )


def figures(records: Iterable[Record]) -> str:
    """A line for each case, with its numbers."""
    lines = []
    for record in records:
        numbers = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in record.found.items()
        )
        lines.append(f"- {record.case}: {numbers or record.status}")
    return "\n".join(lines) or "None."


def times(records: Iterable[Record]) -> str:
    """The table of benchmarks, and what was not timed."""
    timed = [record for record in records if "stats" in record.found]
    lines = [
        f"- {record.case}: {record.error}"
        for record in records
        if record.stage in ("losses", "pool", "unroll", "peers") and record.status == SKIPPED
    ]
    if not timed:
        return "\n".join(["None.", *lines])
    rows = load_rows([{"benchmarks": [record.found for record in timed]}])
    return "\n".join([report.markdown(rows), "", *lines])
