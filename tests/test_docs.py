"""The documentation is true: every Python block of README.md and docs/ runs, and every link leads somewhere.

The blocks of one page run in order, in one namespace.  Not run are blocks opened by "```python no-run" and blocks with
a line that starts with an ellipsis, as in "...  # your loop".
"""

import re
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```python *(?P<word>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<path>[^)#:]+)(?:#[^)]*)?\)")  # what has a colon leads to the web

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def runnable(text):
    """[(line number, code)] of a page's blocks that are there to be run."""
    blocks = []
    for match in FENCE.finditer(text):
        code, word = match["code"], match["word"].strip()
        assert word in ("", "no-run"), f"unknown mark {word!r}: leave it out, or write no-run"
        if word != "no-run" and not re.search(r"^\s*(\.\.\.|…)", code, re.MULTILINE):
            blocks.append((text.count("\n", 0, match.start("code")), code))
    return blocks


@every_page
def test_every_block_runs(page, tmp_path, monkeypatch):
    blocks = runnable(page.read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)  # what a block saves, it saves here
    monkeypatch.setattr(warnings, "filters", [*warnings.filters])  # what a block silences, it silences for itself
    kind, random = torch.get_default_dtype(), torch.get_rng_state()
    torch.manual_seed(0)
    space = {"__name__": "__main__"}
    try:
        for line, code in blocks:  # the empty lines make tracebacks name the page's own lines
            exec(compile("\n" * line + code, str(page), "exec"), space)
    finally:
        torch.set_default_dtype(kind)
        torch.set_rng_state(random)


@every_page
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for match in LINK.finditer(text):
        assert (page.parent / match["path"]).exists(), match["path"]


@every_page
def test_no_page_is_long(page):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 120


def test_what_runs_and_what_does_not():
    page = "\n".join(
        [
            "```python\nfirst = 1\n```",
            "```python no-run\nfirst = nonsense\n```",
            "```python\n...   # your loop\nfirst = nonsense\n```",
            "```bash\nfirst\n```",
            "```python\nassert first == 1\n```",
        ]
    )
    blocks = runnable(page)
    assert [code for _, code in blocks] == ["first = 1\n", "assert first == 1\n"]
    assert [page.splitlines()[line] for line, _ in blocks] == ["first = 1", "assert first == 1"]
