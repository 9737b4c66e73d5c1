"""Errors of the file system that a run folder lies on, in a sentence, and how much room is left there."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

#: What an error of a file system means, and what to do.
_MEANINGS = {
    errno.ENOSPC: ("is full", "make space"),
    errno.EDQUOT: ("has no more room for you: your quota is used up", "make space"),
    errno.EROFS: ("is read-only", "make it writable"),
    errno.ENOENT: ("has gone", "put it back"),
    errno.ENOTDIR: ("has gone", "put it back"),
    errno.EACCES: ("may not be written", "make it writable"),
    errno.EPERM: ("may not be written", "make it writable"),
    errno.EIO: ("cannot be reached (input/output error)", "see to its file system"),
    errno.ESTALE: ("cannot be reached (stale file handle)", "see to its file system"),
    errno.ENODEV: ("cannot be reached (no such device)", "see to its file system"),
    errno.ENOTCONN: ("cannot be reached (not connected)", "see to its file system"),
}

#: Room that is kept: what tasks and launcher need to close their files. Of a small file system a part of it.
RESERVE_BYTES = 64 * 2**20
_RESERVE_PART = 0.05
_RESERVE_FILES = 200


@dataclass(frozen=True)
class Room:
    """Bytes and files that a user may still write on a file system; ``None`` where it does not count files."""

    n_bytes: int
    n_files: int | None
    reserve_bytes: int

    @property
    def is_short(self) -> bool:
        return self.n_bytes < self.reserve_bytes or (self.n_files is not None and self.n_files < _RESERVE_FILES)


def find_room(folder: Path) -> Room:
    """Room on the file system of a folder.

    Raises
    ------
    OSError
        The folder has gone, is out of reach or read-only.
    """
    found = os.statvfs(folder)
    if found.f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(folder))
    reserve = min(RESERVE_BYTES, int(_RESERVE_PART * found.f_blocks * found.f_frsize))
    return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None, reserve)


def find_trouble(folder: Path) -> str | None:
    """What keeps a campaign from writing to a folder, and what to do; None where it can."""
    try:
        room = find_room(folder)
    except OSError as error:
        return explain(error, folder)
    if not room.is_short:
        return None
    left = f"{room.n_bytes / 2**20:.1f} MiB"
    if room.n_bytes >= room.reserve_bytes:
        left = f"{room.n_files} files"
    return f"the file system of {folder} is nearly full ({left} left): make space"


def explain(error: OSError, folder: Path) -> str | None:
    """An error in words; None for one that does not come from the file system.

    Parameters
    ----------
    error : OSError
    folder : Path
        Where the error itself names no path.
    """
    meaning = _MEANINGS.get(error.errno or 0)
    if meaning is None:
        return None
    what, remedy = meaning
    path = error.filename if isinstance(error.filename, str) else str(folder)
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not folder.exists():
        path = str(folder)
    whole = f"the file system of {path}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else path
    return f"{whole} {what}: {remedy}"


def is_storage(error: BaseException | None) -> bool:
    """Whether an error comes from a file system, itself or as radical hands it on in words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _MEANINGS:
            return True
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)):
            return True
        error = error.__cause__ or error.__context__
    return False
