"""STORAGE: where a comparison's study lies, and the signs of life of its workers."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from winnow.errors import WinnowError

JOURNAL = "journal.log"
BEAT, SILENT = 60.0, 900.0
"""Seconds between a worker's signs of life, and after how many without one it counts as dead."""


def storage_of(where: str) -> Any:
    """A folder's journal, or an Optuna storage by its URL, as postgresql://…."""
    try:
        import optuna
        from optuna.storages import JournalStorage, RDBStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as missing:
        raise WinnowError('comparisons need their extra: pip install "torch-winnow[compare]"') from missing
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" in where:
        try:
            return RDBStorage(where)
        except Exception as error:  # whatever the database and its driver raise; the address may hold a password
            said = str(error).strip().splitlines() or [""]
            raise WinnowError(
                f"the comparison's storage cannot be opened: {type(error).__name__}: {said[0]}"
            ) from error
    Path(where).mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(Path(where) / JOURNAL)))


def shown(where: str) -> str:
    """How messages name a storage: a folder as it is, a database without its password."""
    if "://" not in where:
        return where
    from sqlalchemy.engine import make_url

    return make_url(where).render_as_string(hide_password=True)


class Beat:
    """A worker's sign of life, now and then."""

    def __init__(self, trial: Any) -> None:
        self.trial, self.last = trial, time.time()
        trial.set_user_attr("beat", self.last)

    def __call__(self) -> None:
        if time.time() - self.last > BEAT:
            self.last = time.time()
            self.trial.set_user_attr("beat", self.last)


def dead(trial: Any) -> bool:
    """Whether the job's worker is no more: a process of this machine that is gone, or one that has long been silent."""
    host, _, pid = trial.user_attrs.get("worker", "").partition(" ")
    if host == socket.gethostname() and pid.isdigit():
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    heard = trial.user_attrs.get("beat", trial.datetime_start.timestamp())  # it may just have been taken
    return bool(time.time() - heard > SILENT)
