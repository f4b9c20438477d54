"""Under which user a server runs, and which folders that user can reach.

PostgreSQL refuses to run as root. Started by root, the servers therefore run under an existing
unprivileged user (FWDB_RUN_AS, else ``nobody``). No user is made and no folder that was there
before changes its mode: what that user cannot reach is put where it can.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from fwdb.errors import EmbeddedError

# Survives a restart of the machine, unlike most temporary folders, and is open to every user.
SHARED_FOLDER = Path("/var/tmp")  # noqa: S108 - folders in it are made 0700 and checked for owner


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


def reaches(account: Account | None, path: Path) -> bool:
    """Whether `account` can enter every folder above `path`, links followed, and read `path`.

    Judged by owner, group and mode; access lists are not read.
    """
    if account is None:
        return True
    wanted = 0o5 if path.is_dir() else 0o4
    return all(enters(account, way.parent) for way in _ways(path)) and _allows(
        account, path, wanted
    )


def enters(account: Account, folder: Path) -> bool:
    """Whether `account` may pass through `folder` and every folder above it."""
    return all(_allows(account, step, 0o1) for way in _ways(folder) for step in (way, *way.parents))


def _ways(path: Path) -> set[Path]:
    return {Path(os.path.abspath(path)), path.resolve()}


def _allows(account: Account, path: Path, wanted: int) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_uid == account.uid:
        granted = status.st_mode >> 6
    elif status.st_gid == account.gid:
        granted = status.st_mode >> 3
    else:
        granted = status.st_mode
    return granted & wanted == wanted


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
        if folder.is_dir() and any(folder.iterdir()) and enters(account, folder.parent):
            return folder
    return beside if enters(account, home.parent) else outside


def private_folder(path: Path, account: Account | None) -> Path:
    """`path` as a folder that only `account` (None: this user) can enter; made if missing.

    Raises `EmbeddedError` if something of another user lies there.
    """
    uid, gid = (account.uid, account.gid) if account else (os.geteuid(), os.getegid())
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid:
            raise EmbeddedError(
                f"'{path}' is needed as a folder of user {uid} and belongs to user "
                f"{status.st_uid} or is no folder; move it away, or set FWDB_HOME."
            ) from None
        if stat.S_IMODE(status.st_mode) != 0o700:
            path.chmod(0o700)
        return path
    path.chmod(0o700)  # whatever the umask took away
    if account:
        os.chown(path, uid, gid, follow_symlinks=False)
    return path
