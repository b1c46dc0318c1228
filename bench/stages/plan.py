"""What `make gpu` does, in order: the earlier, the more is lost without it."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from stages.commit import ROOT
from stages.records import OK, SKIPPED, Record
from stages.supervise import Stage

TEST_WORKERS, TRIAGE_WORKERS, SANITIZER_WORKERS = 6, 8, 4
_TESTED = re.compile(r"\b(device|kernel_device|needs_gpu|mark\.gpu)\b")
_REHEARSED = ("test_host_waits.py", "test_triage.py")
# Providers of the benchmarks, by what they are here for.
OURS = ("mim4dd", "mim4dd, captured", "mim4dd, two info_nce", "mim4dd, single positive")
FLOOR = ("torch", "gemms", "graph", "convolutions")
PEERS = (
    "torch.compile", "liger-kernel", "cce", "cce_exact", "inf-cl", "open_clip", "info-nce-pytorch",
    "pytorch-metric-learning", "higher", "torchopt",
)  # fmt: skip
LOSSES = ("bench_info_nce.py", "bench_sup_con.py", "bench_clip_loss.py")
PYTEST = (0, 1, 5)  # it went through: all passed, some failed, there was none


class Part(NamedTuple):
    """Stages that run beside one another, and the seconds for all of them."""

    name: str
    limit: float
    stages: tuple[Stage, ...]
    workers: int = 1
    needed: str = ""  # a case without which nothing can follow


class Setting(NamedTuple):
    """What all stages share."""

    results: Path
    device: str  # "cpu" in a rehearsal

    @property
    def rehearsal(self) -> bool:
        """Whether sizes are small."""
        return self.device == "cpu"

    def module(self, name: str, stage: str, limit: float, *words: str, case: float = 60) -> Stage:
        """A module of this package."""
        command = (sys.executable, "-m", f"stages.{name}", "--results", str(self.results))
        command += ("--stage", stage, "--device", self.device, *words)
        return Stage(stage, command, limit, case)

    def pytest(self, stage: str, limit: float, *words: str, case: float = 60) -> Stage:
        """Tests or benchmarks."""
        command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
        command += ("-p", "stages.notes")
        command += ("--results", str(self.results), "--stage", stage, *words)
        return Stage(stage, command, limit, case, PYTEST)

    def benchmarks(
        self, stage: str, limit: float, files: Iterable[str], only: Iterable[str]
    ) -> Stage:
        """Of these files, with these providers as far as a file has them."""
        words = [f"bench/{file}" for file in files]
        words += ["--tiny"] if self.rehearsal else ["--short", "--repeats=3"]
        words += [word for name in only for word in ("--provider", name)]
        return self.pytest(stage, limit, *words)


def full(setting: Setting) -> Iterator[Part]:
    """All of it."""
    yield _begin(setting)
    yield from _smoke(setting)
    yield Part("triage", 80, tuple(triage(setting)), TRIAGE_WORKERS)
    yield Part("tests", 120, tuple(files_of_tests(setting)), TEST_WORKERS)
    yield Part("sanitizer", 45, tuple(sanitizer(setting)), SANITIZER_WORKERS)
    yield from figures(setting)
    yield _alone("counters", 50, setting.module("counters", "counters", 50, case=25))
    yield _alone("profiles", 20, setting.module("profiles", "profiles", 20))
    peers = setting.benchmarks("peers", 60, [LOSSES[0], LOSSES[2]], ["mim4dd", *PEERS])
    yield _alone("peers", 60, peers)


def again(setting: Setting, before: dict[tuple[str, str], Record]) -> Iterator[Part]:
    """After a fix: what had not passed, other tiles, and the figures."""
    yield _begin(setting)
    yield from _smoke(setting)
    wrong: dict[str, list[str]] = {}
    for (stage, case), record in before.items():
        if record.status not in (OK, SKIPPED):
            wrong.setdefault(stage, []).append(case)
    kinds = (("triage", 60, triage), ("tests", 120, files_of_tests), ("sanitizer", 40, sanitizer))
    for name, limit, kind in kinds:
        if some := tuple(kind(setting, wrong)):
            yield Part(f"{name} again", limit, some, TEST_WORKERS)
    yield _alone("tiles", 60, setting.module("tiles", "tiles", 60, case=20))
    yield from figures(setting)


def figures(setting: Setting) -> Iterator[Part]:
    """What the README's table is made of."""
    yield _alone("ceilings", 20, setting.module("ceilings", "ceilings", 20))
    only = [*OURS, *FLOOR]
    yield _alone("losses", 70, setting.benchmarks("losses", 70, LOSSES, only))
    yield _alone("pool", 20, setting.benchmarks("pool", 20, ["bench_norm_relu_pool.py"], only))
    yield _alone("unroll", 50, setting.benchmarks("unroll", 50, ["bench_unroll_sgd.py"], only))


def _alone(name: str, limit: float, stage: Stage) -> Part:
    return Part(name, limit, (stage,))


def _begin(setting: Setting) -> Part:
    return _alone("build", 150, setting.module("build", "build", 150, case=150))


def _smoke(setting: Setting) -> Iterator[Part]:
    smoke = setting.module("smoke", "smoke", 60, case=40)
    yield Part("smoke", 60, (smoke,), needed="versions")


def triage(setting: Setting, wrong: dict[str, list[str]] | None = None) -> Iterator[Stage]:
    """A process for each loss and dtype; of what went wrong alone where that is given."""
    losses = ("info_nce", "sup_con", "clip_loss", "normalized", "sup_con in", "nce")
    for loss in losses[:2] if setting.rehearsal else losses:
        for dtype in ("bfloat16", "float16", "tf32"):
            stage = f"triage {loss} {dtype}"
            if wrong is None or stage in wrong:
                cases = wrong[stage] if wrong else []
                yield setting.module("triage", stage, 80, loss, dtype, *cases, case=40)


def files_of_tests(setting: Setting, wrong: dict[str, list[str]] | None = None) -> Iterator[Stage]:
    """A process for each file with tests that use a GPU."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        stage = path.relative_to(ROOT).as_posix()
        if setting.rehearsal:
            chosen = path.name in _REHEARSED
        else:
            chosen = _TESTED.search(path.read_text(encoding="utf-8")) is not None
        if wrong is not None:
            if stage in wrong:
                yield setting.pytest(stage, 120, *wrong[stage], case=40)
        elif chosen:
            yield setting.pytest(stage, 120, stage, "-m", "gpu", case=40)


def sanitizer(setting: Setting, wrong: dict[str, list[str]] | None = None) -> Iterator[Stage]:
    """Several processes, with a share of the launches each."""
    for place in range(SANITIZER_WORKERS):
        stage = f"sanitizer {place + 1}"
        share = f"{place + 1}/{SANITIZER_WORKERS}"
        some = [share] if wrong is None else wrong.get(stage, [])
        if some:
            yield setting.module("sanitizer", stage, 45, *some, case=40)
