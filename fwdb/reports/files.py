"""Output folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fwdb import config
from fwdb.errors import ReportError


def default_folder() -> Path:
    """Where reports go: FWDB_REPORT_DIR, else `reports` here, or above when this is `notebooks`."""
    configured = config.settings().report_dir
    if configured is not None:
        return configured
    here = Path.cwd()
    return (here.parent if here.name == "notebooks" else here) / "reports"


@contextlib.contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A private folder inside `parent` to build in; it is gone afterwards, whatever happens.

    It stands beside its target, so that moving the result into place is one rename.
    """
    new = not parent.exists()
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(".fwdb-*-*"):  # of runs that were killed
            owner = left.name.split("-")[1]
            if owner.isdecimal() and not _alive(int(owner)):
                shutil.rmtree(left, ignore_errors=True)
        folder = _beside(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):  # it holds a report
                parent.rmdir()


def _beside(parent: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".fwdb-{os.getpid()}-", dir=parent))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def place(built: Path, target: Path) -> None:
    """Puts the folder `built` where `target` is or was; the old one stays until that moment."""
    with writing(target.parent):
        old = _beside(target.parent) / "old"
        try:
            for _ in range(10):
                with contextlib.suppress(FileNotFoundError):  # none, or another run took it
                    target.rename(old)
                try:
                    built.rename(target)
                    return
                except OSError as error:  # another run has put its own there since
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    shutil.rmtree(old, ignore_errors=True)
            raise ReportError(f"{target} is being replaced by other runs all the time; run again.")
        finally:
            # Interrupted between the two renames: the old report goes back.
            if old.exists() and not target.exists():
                old.rename(target)
            shutil.rmtree(old.parent, ignore_errors=True)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what a file system refuses into a `ReportError` that names the folder."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ReportError(
            f"the report cannot be written to {folder} ({reason}); make room or choose another "
            "folder with --out."
        ) from error


def write(path: Path, text: str) -> None:
    """`text` as UTF-8 with its newlines as they are."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
