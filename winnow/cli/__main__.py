"""`python -m winnow.cli` is `winnow`."""

from . import app

app()
