"""PAGES: a record's paragraph and the page of a paper, from the records alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import study
from .base import Paper

HEAD = "<!-- built by scripts/papers.py from the records: change those, or the texts in winnow/papers -->"


def paragraph(record: dict[str, Any]) -> str:
    """README.md of a record folder: settings, verdicts, numbers, figure."""
    return "\n".join([f"# {record['title']}", "", *_body(record, Path("."))])


def page(paper: Paper, folders: Sequence[Path], home: Path) -> str:
    """The page of a paper: its idea, then its records in order; `home` is the page's folder."""
    lines = [HEAD, "", f"# {paper.title}", "", paper.cite, "", *paper.idea.strip().splitlines(), ""]
    for folder in folders:
        record = study.read(folder)
        lines += [f"## {record['title']}", "", *_body(record, Path(os.path.relpath(folder, home)), short=True)]
    return "\n".join(lines)


def latest(records: Path, name: str) -> Path | None:
    """The newest finished record of the experiment `name`."""
    found = [folder for folder in records.glob(f"*_{name}") if (folder / study.RECORD).exists()]
    return max(found, default=None, key=_age)


def _age(folder: Path) -> tuple[str, int]:
    """<date>_<name>, or <date>.<number>_<name> for the second of a day and later."""
    date, _, number = folder.name.split("_")[0].partition(".")
    return date, int(number or 1)


def _body(record: dict[str, Any], folder: Path, short: bool = False) -> list[str]:
    hardware, seeds = record["environment"], record["seeds"]
    run = f"`{record['command']}` · {seeds} seed{'s' if seeds > 1 else ''}"
    run += f" · {_time(record['seconds'])}, all cells added up"
    lines = [f"{run} · {hardware['processor']} · torch {hardware['versions']['torch']} · {record['date']}"]
    lines[0] += f" · [record]({folder.as_posix()}/record.json)" if short else ""
    lines += ["", "| claim | published | here | verdict |", "|---|---|---|---|"]
    for verdict in record["verdicts"]:
        words = [verdict["claim"], verdict["published"], verdict["ours"], f"**{verdict['outcome']}**"]
        lines.append(_line(words))
    if record["missing"]:
        lines += ["", "Missing data: " + "; ".join(record["missing"])]
    if record.get("diverged"):
        cells = [said.partition(";")[0] + ")" * (";" in said) for said in record["diverged"]]
        lines += ["", "Diverged, and left out: " + "; ".join(cells) + "."]
    if len(made := record.get("made_by", {})) > 1:
        parts = ", ".join(f"{count} at {_short(commit)}" for commit, count in made.items())
        lines += ["", f"Resumed after a change; cells by commit: {parts}."]
    lines += ["", "**What differs.** " + record["differs"]]
    if record.get("failed"):
        lines += ["", "**What failed, and why, we think.** " + record["failed"]]
    if record["table"]:
        lines += ["", _line(record["table"]["columns"]), "|---" * len(record["table"]["columns"]) + "|"]
        lines += [_line(row) for row in record["table"]["rows"]]
        lines += ["", f"![{record['title']}]({(folder / 'figure.png').as_posix()})"]
    if not short:
        settings = [f"{key} = {value}" for key, value in record["settings"].items()]
        lines += ["", "Settings: " + "; ".join(settings) + ". All numbers: `raw.json`."]
    return [*lines, ""]


def _short(commit: str) -> str:
    """Its first letters, and whether there were changes not yet committed."""
    return commit[:8] + commit[40:]


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"


def _line(words: Sequence[str]) -> str:
    return "| " + " | ".join(word.replace("|", "\\|") for word in words) + " |"
