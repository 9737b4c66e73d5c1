"""A result appears whole or not at all: it is written elsewhere, put on disk, and renamed into its place."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from entk_app.errors import EntkAppError
from entk_app.integrity import DamagedError, digest_file


class ScratchError(EntkAppError):
    """The node's own disk cannot be written."""

    exit_code = 2


class Workplace:
    """A folder to write a result in until it is whole.

    Parameters
    ----------
    target : Path
        The folder that is to appear.
    local : Path or None
        Folder on the node's own disk to write to; None: beside the target. May hold variables (``$TMPDIR``).

    Attributes
    ----------
    folder : Path
        Empty, to be written to.
    partial : Path
        Its name in the run folder while it is not whole; what shows progress lies there too.

    Raises
    ------
    ScratchError
        ``local`` cannot be written.
    """

    def __init__(self, target: Path, local: Path | None = None) -> None:
        self._target = target
        self.partial = target.with_name(target.name + ".partial")
        # What an earlier try of this very result left is not data.
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        self.folder = self.partial if local is None else _make_local(local, target)

    def publish(self) -> None:
        """Let the folder appear under its name, its content on disk.

        Raises
        ------
        DamagedError
            What arrived from the node's own disk is not what was written there.
        """
        if self.folder != self.partial:
            for path in sorted(self.folder.iterdir()):
                copy = self.partial / path.name
                shutil.copyfile(path, copy)
                if digest_file(copy) != digest_file(path):
                    raise DamagedError(f"{copy} is not what was written to {path}", self.partial)
        for path in self.partial.iterdir():
            _sync(path)
        _sync(self.partial)
        os.replace(self.partial, self._target)
        _sync(self._target.parent)
        if self.folder != self.partial:
            shutil.rmtree(self.folder)

    def discard(self) -> None:
        """Take away what was written on the node's own disk; what lies in the run folder is the campaign's to judge."""
        if self.folder != self.partial:
            shutil.rmtree(self.folder, ignore_errors=True)


def expand_local(local: Path) -> Path:
    """A node's own folder with the variables of this process' environment.

    Raises
    ------
    ScratchError
        A variable is not set, or the path is not absolute.
    """
    expanded = os.path.expanduser(os.path.expandvars(local))
    if "$" in expanded:
        raise ScratchError(f"resource.node_local_path = '{local}': a variable in it is not set on this node")
    if not Path(expanded).is_absolute():
        raise ScratchError(f"resource.node_local_path = '{local}': give an absolute path")
    return Path(expanded)


def check_local(local: Path | None) -> None:
    """Refuse a folder of the node's own disk that a task could not write to; for the node that this is.

    Raises
    ------
    ScratchError
    """
    if local is None or "$" in os.path.expandvars(local):
        # A variable that only a task has, by its batch system or resource.pre_exec.
        return
    root = expand_local(local)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        raise ScratchError(f"resource.node_local_path = '{local}' cannot be written to: {error.strerror}") from None


def _make_local(local: Path, target: Path) -> Path:
    root = expand_local(local)
    # The same name for the same result: what a killed task left here is replaced by the next try.
    name = hashlib.sha256(os.fsencode(target)).hexdigest()[:16]
    folder = root / f"entk-app-{os.getuid()}" / name
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise ScratchError(f"resource.node_local_path = '{local}': {folder} cannot be made: {error.strerror}") from None
    return folder


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
