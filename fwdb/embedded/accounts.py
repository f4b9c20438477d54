"""Under which user a server runs, and which folders that user can reach.

PostgreSQL refuses to run as root. Started by root, the servers therefore run under an existing
unprivileged user (FWDB_RUN_AS, else ``nobody``). No user is made and no folder that was there
before changes its mode: what that user cannot reach is put where it can.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from fwdb.errors import EmbeddedError

# Survives a restart of the machine, unlike most temporary folders, and is open to every user.
SHARED_FOLDER = Path("/var/tmp")  # noqa: S108 - folders in it are root's and checked for owner


@dataclass(frozen=True)
class Account:
    """An existing user that servers run under."""

    name: str
    uid: int
    gid: int


def server_account(run_as: str | None) -> Account | None:
    """The user that servers are to run under, or None to keep that of this process.

    Raises `EmbeddedError` when `run_as` is unknown or is root itself.
    """
    if os.geteuid() != 0:
        return None
    import pwd  # absent on Windows, where nobody is root

    name = run_as or "nobody"
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        raise EmbeddedError(
            f"there is no user '{name}' on this machine to run the servers under; set FWDB_RUN_AS "
            "to the name of an existing unprivileged user."
        ) from None
    if entry.pw_uid == 0:
        raise EmbeddedError(
            f"PostgreSQL refuses to run as root and FWDB_RUN_AS is '{name}'; set it to the name "
            "of an unprivileged user."
        )
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def reaches(account: Account | None, *paths: Path) -> bool:
    """Whether `account` can read, or as a folder enter, each of `paths`; the system is asked."""
    if account is None:
        return True
    test = 'for path; do test -r "$path" -o -x "$path" || exit 1; done'
    asked = subprocess.run(
        ["/bin/sh", "-c", test, "sh", *map(os.path.abspath, paths)],
        cwd="/",
        user=account.uid,
        group=account.gid,
        extra_groups=[],
        check=False,
    )
    return asked.returncode == 0


def server_folder(home: Path, account: Account | None) -> Path:
    """Where data of servers under `account` lies.

    That is `home` itself unless the servers run under another user. `home` is closed to that
    user, so its data lies in a folder of its own beside it, or, where it could not get there,
    in one under /var/tmp whose name follows from the path of `home`.
    """
    if account is None:
        return home
    outside = SHARED_FOLDER / f"fwdb-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}"
    beside = home.with_name(f"{home.name}-servers")
    for folder in (beside, outside):  # existing data stays where it is
        if folder.is_dir() and any(folder.iterdir()) and reaches(account, folder.parent):
            return folder
    return beside if reaches(account, home.parent) else outside


def private_folder(path: Path, account: Account | None, *, shared: bool = False) -> Path:
    """`path` as a folder that only `account` (None: this user) can enter; made if missing.

    With `shared`, as a folder of this user that `account` can pass through and not change: nothing
    in it can be exchanged for a link while root works there.

    Raises `EmbeddedError` if something of another user lies there.
    """
    mine = (os.geteuid(), os.getegid())
    theirs = (account.uid, account.gid) if account else mine
    uid, gid = mine if shared else theirs
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if path.is_symlink() or not path.is_dir():
        raise EmbeddedError(
            f"'{path}' is needed as a folder and is none; move it away, or set FWDB_HOME."
        )
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(handle)
        if status.st_uid in (mine[0], theirs[0]):
            mode = 0o711 if shared and account else 0o700
            if (status.st_uid, status.st_gid) != (uid, gid):
                os.fchown(handle, uid, gid)
            if stat.S_IMODE(status.st_mode) != mode:
                os.fchmod(handle, mode)
            if os.path.samestat(status, path.lstat()):  # not exchanged meanwhile
                return path
    finally:
        os.close(handle)
    raise EmbeddedError(
        f"'{path}' is needed as a folder of user {uid} and belongs to user {status.st_uid}; move "
        "it away, or set FWDB_HOME."
    )


def guard_folders(folder: Path, data: Path, account: Account | None) -> None:
    """Keep the names in `folder` in this user's hands, and what `data` in it holds in `account`'s.

    Raises as `private_folder`.
    """
    private_folder(folder, account, shared=True)
    if os.path.lexists(data):
        private_folder(data, account)


def open_own(path: Path, account: Account | None) -> int:
    """A descriptor to read the file or folder `path` that `account` (None: this user) owns.

    The owner is asked of the descriptor: whatever stands at `path`, nothing is read that `account`
    could not read itself, and what is done below the descriptor stays in a folder of its own.
    Raises `OSError`; `PermissionError` for what belongs to another, `ELOOP` for a link.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(handle)
    own = status.st_uid == (account.uid if account else os.geteuid())
    if own and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return handle
    os.close(handle)
    raise PermissionError(errno.EPERM, "it is no file of the servers' user", str(path))


def read_own(path: Path, account: Account | None) -> bytes:
    """Content of the file `path`, if `account` owns it; raises as `open_own`."""
    with open(open_own(path, account), "rb") as file:
        return file.read()


def write_own(path: Path, text: str, account: Account | None) -> None:
    """Put `text` into `path`, whole or not at all: 0600, in a folder of `account` and owned by it.

    Raises as `open_own`.
    """
    folder = open_own(path.parent, account)
    temporary = f"{path.name}.fwdb"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)  # of a start that was killed, or a full disk
        with open(os.open(temporary, flags, 0o600, dir_fd=folder), "w") as file:
            if account:
                os.fchown(file.fileno(), account.uid, account.gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def exposed_folder(path: Path) -> Path | None:
    """The first folder on the way to `path` in which another user than root and this one may
    exchange what comes next; None if there is none. Links are followed, judged where they lie.

    Access lists are not read.
    """
    trusted = (0, os.geteuid())
    here, left, links = Path("/"), list(Path(os.path.abspath(path)).parts[1:]), 0
    while left:
        folder, name = here.lstat(), left.pop(0)
        try:
            entry = (here / name).lstat()
        except FileNotFoundError:
            entry = None  # made by this user
        writable = folder.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if folder.st_gid else 0))
        kept = folder.st_mode & stat.S_ISVTX and (entry is None or entry.st_uid in trusted)
        if folder.st_uid not in trusted or (writable and not kept):
            return here
        if entry is None:
            return None
        if stat.S_ISLNK(entry.st_mode) and (links := links + 1) <= 40:
            target = Path(os.readlink(here / name))
            left = [*target.parts[target.is_absolute() :], *left]
            here = Path("/") if target.is_absolute() else here
        else:
            here = here.parent if name == ".." else here / name
    return None
