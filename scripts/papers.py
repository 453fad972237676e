"""Builds docs/papers/*.md from the records: `python scripts/papers.py` (with --check it only says whether they are)."""

from __future__ import annotations

import sys
from pathlib import Path

from winnow.papers import EXPERIMENTS, PAPERS
from winnow.papers.pages import latest, page

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
