"""The state folder `.fwdb`: where it is, what is in it, and one writer at a time.

.fwdb/            0700
  lock            held while servers are started or stopped
  state.json      which servers run: pid, when it began, port, binary, version
  secrets.json    0600, the passwords of both servers
  used            its time is that of the last join
  log/            output of the servers before their own logging starts, and of the watcher
  pg/ mongo/      the data (as root: elsewhere, see `accounts.server_folder`)
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fwdb.config import settings
from fwdb.embedded.accounts import exposed_folder, write_own
from fwdb.errors import EmbeddedError, FeatureUnavailable

Progress = Callable[[str], None]  # told in short sentences what takes time

NAME = ".fwdb"
LOCK_SECONDS = 180.0  # a first start on a slow machine, twice


def find_home(start: Path | None = None) -> Path:
    """The state folder to use from `start` (the current folder): it need not exist yet.

    FWDB_HOME if set; else `.fwdb` in the nearest folder upwards that has one of this user's, or
    that holds a pyproject.toml or .git; else `.fwdb` in `start`.
    """
    configured = settings().home
    if configured is not None:
        return Path(os.path.abspath(configured.expanduser()))
    try:
        here = Path(start or Path.cwd()).resolve()
    except OSError as error:  # the current folder has been removed
        raise EmbeddedError(
            "the current folder is gone; change to another one or set FWDB_HOME."
        ) from error
    for folder in (here, *here.parents):
        candidate = folder / NAME
        with contextlib.suppress(OSError):
            if candidate.is_dir() and candidate.stat().st_uid == os.geteuid():
                return candidate
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return candidate
    return here / NAME


@dataclass(frozen=True)
class Record:
    """One server as `state.json` remembers it."""

    pid: int
    began: float
    port: int
    data: str
    engine: str
    version: str
    binary: str
    started_at: float
    watcher_pid: int
    watcher_began: float


@dataclass
class State:
    """Content of `state.json`. `ports` outlive the servers, so that URLs stay the same."""

    servers: dict[str, Record] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)


class Home:
    """A state folder. Nothing is made before `create`.

    Raises `EmbeddedError` as root when another user could put a link in its place.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self.log = self.path / "log"
        self._guard(path)

    def _guard(self, path: Path) -> None:
        if os.geteuid() == 0 and (folder := exposed_folder(path)):
            raise EmbeddedError(
                f"root cannot use '{self.path}': another user may change '{folder}', and put "
                "something else there; work as that user or set FWDB_HOME to a folder in one that "
                "only root may change."
            )

    def check(self) -> None:
        """Raises `EmbeddedError` when it belongs to another user, or holds other files."""
        self._guard(self.path)
        owner = self.path.stat().st_uid
        if owner != os.geteuid():
            raise EmbeddedError(
                f"'{self.path}' belongs to user {owner} and you are user {os.geteuid()}; work as "
                "that user or set FWDB_HOME to a folder of your own."
            )
        there = os.listdir(self.path)
        if there and "lock" not in there:  # which is made before anything else
            # Closing it to others, as is done next, would be a surprise to whoever uses it.
            raise EmbeddedError(
                f"'{self.path}' holds files that are not fwdb's; set FWDB_HOME to a folder of "
                "its own."
            )

    def create(self) -> None:
        """Make the folder, open to this user only; raises as `check`."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.check()
        if stat.S_IMODE(self.path.stat().st_mode) != 0o700:
            self.path.chmod(0o700)
        (self.path / "lock").touch(mode=0o600)
        self.log.mkdir(mode=0o700, exist_ok=True)
        if not (self.path / ".gitignore").exists():
            (self.path / ".gitignore").write_text("*\n")

    @property
    def existing(self) -> Path:
        """The folder, or the one above that it would be made in."""
        return next(one for one in (self.path, *self.path.parents) if one.exists())

    @contextlib.contextmanager
    def lock(self, progress: Progress) -> Iterator[None]:
        """Be the only process that starts or stops servers of this home.

        Raises as `locks`, and `EmbeddedError` after three minutes.
        """
        deadline = time.monotonic() + LOCK_SECONDS
        told = False
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not locks(descriptor, self.path):
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"another process has been starting or stopping the servers of "
                        f"'{self.path}' for {LOCK_SECONDS:g} s; end it and try again."
                    )
                if not told:
                    progress("Waiting for another process that starts or stops the servers")
                    told = True
                time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def read_state(self) -> State:
        """What `state.json` says; a missing or damaged file says that nothing is known."""
        try:
            content = self._read("state.json")
            return State(
                {name: Record(**one) for name, one in content["servers"].items()},
                {name: int(port) for name, port in content["ports"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            # What runs is then found by its command line, and the file is written anew.
            return State()

    def write_state(self, state: State) -> None:
        self._write("state.json", {"schema": 1, **asdict(state)})

    def read_secrets(self) -> dict[str, dict[str, str]]:
        """Passwords by store and user; empty when there are none or the file is damaged."""
        content = self._read("secrets.json")
        if not isinstance(content, dict):
            return {}
        return {name: dict(users) for name, users in content.items() if isinstance(users, dict)}

    def write_secrets(self, content: dict[str, dict[str, str]]) -> None:
        self._write("secrets.json", content)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return None

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_own(self.path / name, json.dumps(content, indent=2) + "\n", None)

    def touch_used(self) -> None:
        """Tell the watcher that somebody has just joined."""
        (self.path / "used").touch(mode=0o600)


def locks(descriptor: int, folder: Path, *, shared: bool = False) -> bool:
    """Lock a file or folder, unless another process has it; whether that was done.

    Raises `FeatureUnavailable` on Windows, `EmbeddedError` where the file system knows no locks.
    """
    try:
        import fcntl
    except ImportError:
        raise FeatureUnavailable(
            "the built-in servers need Linux or macOS; set FWDB_POSTGRES_URL and "
            "FWDB_MONGODB_URL to servers of your own."
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_NB | (fcntl.LOCK_SH if shared else fcntl.LOCK_EX))
    except BlockingIOError:
        return False
    except OSError as error:
        raise EmbeddedError(
            f"'{folder}' is on a file system without file locks ({error.strerror}); set FWDB_HOME "
            "to a folder on a local disk."
        ) from error
    return True


@contextlib.contextmanager
def disk_sentences(path: Path) -> Iterator[None]:
    """Turn errors of the file system inside the block into one sentence with the remedy."""
    try:
        yield
    except BrokenPipeError:  # of who is told what takes time
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EmbeddedError(disk_full(path)) from error
        raise EmbeddedError(
            f"'{error.filename or path}' cannot be written ({error.strerror}); set FWDB_HOME to a "
            "folder you can write to."
        ) from error


def disk_full(path: Path) -> str:
    """The sentence for a disk that has no room for `path`."""
    return (
        f"the disk that holds '{path}' is full ({free_bytes(path) // 1_000_000} MB free); make "
        "room or set FWDB_HOME to a folder on another disk."
    )


def check_room(folder: Path, needed: int) -> None:
    """Raises `EmbeddedError` when the disk of `folder` has not so many bytes free."""
    if free_bytes(folder) < needed:
        raise EmbeddedError(disk_full(folder))


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds `path`, or will hold it."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free


def data_bytes(folder: Path) -> int:
    """Bytes of all files under `folder`; files that vanish meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total
