"""Which commit sources are of, where there is no .git: by the names that git gives to folders.

    python bench/stages/commit.py results.jsonl     the newest commit that has those folders

A copy of a working tree on another machine tells the names; a clone finds the commit by them.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = ("csrc", "kernels", "mim4dd")  # what figures depend on


def trees(root: Path = ROOT) -> dict[str, str]:
    """Git's name of each folder, as far as there are files."""
    return {name: tree_of(root / name) for name in FOLDERS}


def tree_of(folder: Path) -> str:
    """Git's name of a folder as it would be committed: without links, and what is built."""
    entries = []
    for path in folder.iterdir():
        if path.is_symlink() or path.name == "__pycache__" or path.suffix == ".so":
            continue
        if path.is_dir():
            # Git sorts a folder as if its name ended in a slash.
            entries.append((f"{path.name}/", "40000", tree_of(path)))
        else:
            mode = "100755" if path.stat().st_mode & 0o100 else "100644"
            entries.append((path.name, mode, _name("blob", path.read_bytes())))
    entries.sort(key=lambda entry: entry[0].encode())
    parts = (
        f"{mode} {name.rstrip('/')}\0".encode() + bytes.fromhex(number)
        for name, mode, number in entries
    )
    return _name("tree", b"".join(parts))


def _name(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


def find(wanted: dict[str, str], root: Path = ROOT) -> str | None:
    """The newest commit with these folders; None without one, or where there is no repository."""
    commits = _git(root, "rev-list", "HEAD").split()
    names = "".join(f"{commit}:{folder}\n" for commit in commits for folder in wanted)
    answers = _git(root, "cat-file", "--batch-check=%(objectname)", given=names).splitlines()
    for place, commit in enumerate(commits):
        own = answers[place * len(wanted) : (place + 1) * len(wanted)]
        if own == list(wanted.values()):
            return commit
    return None


def _git(root: Path, *words: str, given: str = "") -> str:
    try:
        result = subprocess.run(
            ["git", *words], cwd=root, input=given, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git here
        return ""
    return result.stdout if result.returncode == 0 else ""


def main() -> None:
    from stages.records import Results

    for record in Results(Path(sys.argv[1])).cases().values():
        if "trees" in record.found:
            sys.exit(print(find(record.found["trees"]) or "no commit of this repository"))
    sys.exit("the results name no folders")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "bench"))
    main()
