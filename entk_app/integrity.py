"""What was published is read only as it was published: digests, and damaged things set aside.

A record holds size and SHA-256 of the files beside it (``files``). Whoever reads such a file as data asks
:func:`check_file` first; what is damaged is moved below ``RUN/set-aside`` with the reason, never deleted.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from entk_app.errors import DataError, RecordError
from entk_app.layout import ModelPaths, RunLayout, SegmentPaths
from entk_app.records import (
    FileDigest,
    ModelRecord,
    SegmentRecord,
    SetAside,
    append_record,
    read_record,
    read_whole_lines,
)

logger = logging.getLogger(__name__)

#: Part of the format of records: blocks of digests are of so many bytes.
_BLOCK_BYTES = 1 << 20


class DamagedError(DataError):
    """A published file is missing, truncated or altered.

    Attributes
    ----------
    result : Path
        The folder or file that was published as a whole and is not to be read any more.
    """

    def __init__(self, message: str, result: Path) -> None:
        super().__init__(message)
        self.result = result


def digest_file(path: Path) -> FileDigest:
    """Size and SHA-256 of a file, and of its blocks where it has several."""
    state, n_bytes, blocks = hashlib.sha256(), 0, []
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            state.update(block)
            n_bytes += len(block)
            blocks.append(hashlib.sha256(block).hexdigest())
    return FileDigest(n_bytes=n_bytes, sha256=state.hexdigest(), blocks=tuple(blocks) if len(blocks) > 1 else ())


def _hash_file(path: Path) -> str:
    state = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def digest_files(paths: Iterable[Path]) -> dict[str, FileDigest]:
    """Digests of files by their names."""
    return {path.name: digest_file(path) for path in paths}


def check_size(path: Path, files: Mapping[str, FileDigest]) -> None:
    """Refuse a file that is not there, or not as long as it was: costs no reading.

    Raises
    ------
    DamagedError
    """
    digest = files.get(path.name)
    try:
        n_bytes = path.stat().st_size
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing", path.parent) from None
    if digest is not None and n_bytes != digest.n_bytes:
        raise DamagedError(f"{path} has {n_bytes} bytes, it was published with {digest.n_bytes}", path.parent)


def check_file(path: Path, files: Mapping[str, FileDigest]) -> None:
    """Refuse a file that is not the one that was published.

    Parameters
    ----------
    path : Path
    files : mapping
        Digests by name, from the record beside the file. A file without one is from a campaign that kept none.

    Raises
    ------
    DamagedError
        It is missing, of another size, or of another content.
    """
    check_size(path, files)
    if path.name in files and _hash_file(path) != files[path.name].sha256:
        raise DamagedError(f"{path} is altered: its checksum is not the one that it was published with", path.parent)


def check_part(path: Path, files: Mapping[str, FileDigest], begin: int, end: int) -> None:
    """Refuse a file whose bytes from ``begin`` up to ``end`` are not those that were published.

    Only the blocks that hold them are read; all of the file where its record has no blocks.

    Raises
    ------
    DamagedError
        It is missing, of another size, or of another content there.
    """
    digest = files.get(path.name)
    if digest is None or not digest.blocks:
        check_file(path, files)
        return
    check_size(path, files)
    first = begin // _BLOCK_BYTES
    with path.open("rb") as stream:
        stream.seek(first * _BLOCK_BYTES)
        for published in digest.blocks[first : (end - 1) // _BLOCK_BYTES + 1]:
            if hashlib.sha256(stream.read(_BLOCK_BYTES)).hexdigest() != published:
                what = "its checksum is not the one that it was published with"
                raise DamagedError(f"{path} is altered: {what}", path.parent)


def read_segment(paths: SegmentPaths) -> SegmentRecord:
    """The record of a finished segment whose files are there and as long as they were.

    Raises
    ------
    DamagedError
    """
    try:
        record = read_record(SegmentRecord, paths.record)
    except RecordError as error:
        raise DamagedError(str(error), paths.folder) from None
    named = f"{record.simulation:04d}/segment-{record.segment:04d}"
    if named != f"{paths.folder.parent.name}/{paths.folder.name}":
        raise DamagedError(f"{paths.record} is the record of simulation {named}", paths.folder)
    for name in record.files:
        check_size(paths.folder / name, record.files)
    return record


def read_model(paths: ModelPaths) -> ModelRecord:
    """The record of a trained model whose files are there and as long as they were.

    Raises
    ------
    DamagedError
    """
    try:
        record = read_record(ModelRecord, paths.record)
    except RecordError as error:
        raise DamagedError(str(error), paths.folder) from None
    for name in record.files:
        check_size(paths.folder / name, record.files)
    return record


def find_damage(paths: SegmentPaths) -> DamagedError | None:
    """What is wrong with a finished segment; all of its files are read."""
    try:
        record = read_segment(paths)
        for name in record.files:
            check_file(paths.folder / name, record.files)
    except DamagedError as error:
        return error
    return None


def set_aside(layout: RunLayout, path: Path, reason: str, **known: int | None) -> SetAside:
    """Move something out of what is read as data, and note why.

    Parameters
    ----------
    layout : RunLayout
    path : Path
        Folder or file within the run folder.
    reason : str
    **known
        Further fields of :class:`~entk_app.records.SetAside`.
    """
    relative = path.relative_to(layout.root)
    layout.set_aside.mkdir(exist_ok=True)
    stem, number = "-".join(relative.parts), 0
    while (kept := layout.set_aside / (f"{stem}.{number}" if number else stem)).exists():
        number += 1
    note = SetAside(
        path=relative.as_posix(),
        kept_as=kept.relative_to(layout.root).as_posix(),
        reason=reason,
        unix=time.time(),
        **{"before_decision": 0, **known},  # type: ignore[arg-type]
    )
    # The note first: what lies there unexplained is not missed, a number that is given twice would be.
    append_record(layout.set_aside_notes, note)
    os.replace(path, kept)
    logger.warning("%s is set aside as %s: %s", relative, note.kept_as, reason)
    return note


def read_set_aside(layout: RunLayout) -> list[SetAside]:
    """What was set aside so far."""
    return read_whole_lines(SetAside, layout.set_aside_notes)
