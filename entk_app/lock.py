"""One campaign per run folder: the lock that a launcher holds while it lives.

``campaign.lock`` names the launcher's process. On the same host (kernel and pid namespace) a second launcher asks the
process table whether that one lives; elsewhere it watches for its heartbeat, the file's time of change, which the
launcher refreshes. Nobody's clock is compared with another's. See docs/decisions/0011-lock-and-watchdog.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from entk_app.errors import LockLost, RecordError, RunFolderError
from entk_app.processes import Host, ProcessId
from entk_app.records import Record

logger = logging.getLogger(__name__)

#: Seconds between two heartbeats, and how long a launcher elsewhere is watched before it is taken for dead.
HEARTBEAT_S = 10.0
WATCH_S = 35.0


class LockRecord(Record):
    """The launcher that has a run folder, and the watchdog that cleans up after it."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start: int
    unix: float
    watchdog_pid: int | None = None
    watchdog_start: int | None = None

    @property
    def process(self) -> ProcessId:
        return ProcessId(self.pid, self.start)

    @property
    def watchdog(self) -> ProcessId | None:
        if self.watchdog_pid is None or self.watchdog_start is None:
            return None
        return ProcessId(self.watchdog_pid, self.watchdog_start)

    @property
    def is_here(self) -> bool:
        """Whether this process' host sees that process under its number."""
        here = Host.here()
        return bool(here.boot_id) and here == Host(self.host, self.boot_id, self.pid_namespace)


class CampaignLock:
    """The lock of one run folder, held by this process.

    Parameters
    ----------
    path : Path
    record : LockRecord
        As it stands on disk.
    """

    def __init__(self, path: Path, record: LockRecord) -> None:
        self.path = path
        self.record = record

    @classmethod
    def create(cls, path: Path) -> CampaignLock:
        """Take a lock that nobody has.

        Raises
        ------
        FileExistsError
            Somebody has it.
        OSError
            It cannot be written.
        """
        own = ProcessId.own()
        here = asdict(Host.here())
        record = LockRecord(host=here.pop("name"), **here, pid=own.pid, start=own.start, unix=time.time())
        with path.open("xb", buffering=0) as stream:
            try:
                stream.write(_render(record).encode())
                os.fsync(stream.fileno())
            except OSError:
                # Full: half a lock would be watched for a heartbeat.
                path.unlink()
                raise
        return cls(path, record)

    @classmethod
    def acquire(
        cls, path: Path, tell: Callable[[str], None] = logger.warning, watch_s: float = WATCH_S
    ) -> CampaignLock:
        """Take a lock, also that of a launcher that is dead.

        Parameters
        ----------
        path : Path
        tell : callable
            Given a sentence when this will take a while.
        watch_s : float
            How long a launcher elsewhere is watched.

        Raises
        ------
        RunFolderError
            Its launcher lives, or the lock cannot be written.
        """
        try:
            while True:
                with contextlib.suppress(FileExistsError):
                    return cls.create(path)
                seen = _look(path)
                if seen is None:
                    continue
                _check_dead(path, seen, tell, watch_s)
                _take_away(path, seen)
        except OSError as error:
            raise RunFolderError(f"cannot write {path}: {error.strerror}") from None

    def note_watchdog(self, watchdog: ProcessId) -> None:
        """Write down which process cleans up when this one is killed."""
        self.check()
        self.record = self.record.model_copy(update={"watchdog_pid": watchdog.pid, "watchdog_start": watchdog.start})
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        temporary.write_text(_render(self.record), encoding="utf-8")
        os.replace(temporary, self.path)

    def beat(self) -> None:
        """Show that this launcher lives.

        Raises
        ------
        LockLost
            The lock is another's by now.
        OSError
            The run folder has gone or cannot be written.
        """
        self.check()
        os.utime(self.path)

    def check(self) -> None:
        """Make sure that the lock is still this process'.

        Raises
        ------
        LockLost, OSError
        """
        found = read_lock(self.path)
        if found is None:
            # Another taker looks at it for a moment before it puts it back.
            time.sleep(1.0)
            found = read_lock(self.path)
        if found is None:
            self.path.parent.stat()
            raise LockLost(f"{self.path} was removed while this campaign ran")
        if not self._is_own(found):
            raise LockLost(f"{self.path} is held by process {found.pid} on {found.host} by now")

    def release(self) -> None:
        """Give the run folder up, if it is still this process'."""
        try:
            found = read_lock(self.path)
            if found is not None and self._is_own(found):
                self.path.unlink()
        except (OSError, RecordError) as error:
            logger.debug("the lock is left where it is: %s", error)

    def is_taken_here(self) -> bool:
        """Whether another launcher on this host has it by now."""
        try:
            found = read_lock(self.path)
        except (OSError, RecordError):
            return False
        return found is not None and not self._is_own(found) and found.is_here

    def _is_own(self, found: LockRecord) -> bool:
        own = self.record
        return (found.host, found.process, found.unix) == (own.host, own.process, own.unix)

    def __enter__(self) -> CampaignLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def read_lock(path: Path) -> LockRecord | None:
    """What a lock says; None where there is none.

    Raises
    ------
    RecordError
        It cannot be understood: torn, or of an earlier version of this application.
    OSError
        It cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return LockRecord.model_validate_json(text)
    except ValueError:
        raise RecordError(f"{path} is not a whole lock") from None


def check_unlocked(path: Path) -> None:
    """Refuse a lock whose launcher lives on this host.

    Raises
    ------
    RunFolderError
    """
    try:
        found = read_lock(path)
    except (OSError, RecordError):
        return
    if found is not None and found.is_here and found.process.lives:
        raise RunFolderError(_refuse(path, f"process {found.pid} on this host ({found.host})"))


def _render(record: LockRecord) -> str:
    return record.model_dump_json(indent=2) + "\n"


def _look(path: Path) -> tuple[str, int] | None:
    """Content and time of change; by opening it, which makes a network file system ask its server."""
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(), os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _check_dead(path: Path, seen: tuple[str, int], tell: Callable[[str], None], watch_s: float) -> None:
    """Refuse a lock whose launcher lives; end the watchdog of a dead one on this host."""
    try:
        record: LockRecord | None = LockRecord.model_validate_json(seen[0])
    except ValueError:
        record = None
    # Where /proc hides other users' processes, theirs cannot be asked for either.
    if record is not None and record.is_here and (record.process.lives or path.stat().st_uid == os.getuid()):
        if record.process.lives:
            raise RunFolderError(_refuse(path, f"process {record.pid} on this host ({record.host})"))
        if record.watchdog is not None:
            # It would go for the processes of a campaign that is about to go on.
            record.watchdog.kill()
        return
    who = "somebody" if record is None else f"process {record.pid} on {record.host}"
    tell(f"{path.parent} is locked by {who}, which cannot be asked from here: watching {watch_s:.0f} s for a heartbeat")
    end = time.monotonic() + watch_s
    while time.monotonic() < end:
        time.sleep(min(1.0, watch_s / 10))
        if _look(path) != seen:
            raise RunFolderError(_refuse(path, who))


def _refuse(path: Path, who: str) -> str:
    return (
        f"the campaign in {path.parent} is still run by {who}: stop it first, or wait for it; "
        f"--resume {path.parent} goes on with it then"
    )


def _take_away(path: Path, seen: tuple[str, int]) -> None:
    """Remove a stale lock, but no other: of two takers one gets it, and whoever has made a new one keeps that."""
    away = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        path.rename(away)
    except FileNotFoundError:
        return
    try:
        if _look(away) == seen:
            return
        # Another taker was quicker: this is its own lock.
        with contextlib.suppress(FileExistsError):
            os.link(away, path)
    finally:
        away.unlink(missing_ok=True)
