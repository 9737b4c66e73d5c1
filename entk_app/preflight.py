"""What can be known of a campaign before its pilot: whether it has the room and the time that it needs."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path

from entk_app.errors import RunFolderError


def check_scratch(scratch: Path | None) -> None:
    """Refuse a scratch folder that radical could not write to; makes nothing.

    Parameters
    ----------
    scratch : Path or None
        ``resource.scratch``. It may be missing, the folder that it is to be made in may not.

    Raises
    ------
    RunFolderError
    """
    if scratch is None:
        return
    key = f"resource.scratch = {str(scratch)[:200]!r}"
    if shlex.quote(str(scratch)) != str(scratch):
        raise RunFolderError(f"{key}: RADICAL-Pilot's scripts take no spaces, quotes or other signs in it; rename it")
    try:
        place = scratch if scratch.exists() else scratch.parent
        if not place.exists():
            raise RunFolderError(f"{key}: there is no folder {place}: make it first, or leave the setting out")
        if not place.is_dir():
            raise RunFolderError(f"{key}: {place} is not a folder")
        with tempfile.TemporaryFile(dir=place):
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunFolderError(f"{key} cannot be written to: {reason}; choose another, or null for none") from None
