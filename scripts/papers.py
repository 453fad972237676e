"""Builds docs/papers/*.md from the records: `python scripts/papers.py`.

With --check it only says whether they are; with --judge it first draws the records' verdicts, tables and figures anew
from their stored numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from winnow.papers import EXPERIMENTS, PAPERS
from winnow.papers.pages import latest, page
from winnow.papers.study import judge_again

ROOT = Path(__file__).parents[1]


def pages() -> dict[Path, str]:
    """Every page's path and text."""
    home, records = ROOT / "docs" / "papers", ROOT / "records"
    found = {}
    for paper in PAPERS:
        names = [one.name for one in EXPERIMENTS.values() if one.paper is paper]
        folders = [folder for name in names if (folder := latest(records, name))]
        found[home / f"{paper.slug}.md"] = page(paper, folders, home)
    return found


def main() -> int:
    if "--judge" in sys.argv:
        for one in EXPERIMENTS.values():
            if folder := latest(ROOT / "records", one.name):
                judge_again(one, folder)
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" not in sys.argv:
        for path, text in pages().items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not what the records say: run python scripts/papers.py")
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
