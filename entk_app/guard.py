"""Watches over a running campaign: its lock, the room in its folders, and the processes of its pilot."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from entk_app.errors import LockLost, RecordError
from entk_app.hung import HungTasks
from entk_app.layout import RunLayout
from entk_app.lock import HEARTBEAT_S, CampaignLock
from entk_app.processes import GRACE_S, ProcessId, end_processes, find_components
from entk_app.storage import explain, find_trouble

logger = logging.getLogger(__name__)

#: Seconds between two looks at the folders and at radical's processes.
_LOOK_S = 2.0

#: Seconds that radical has to notice the loss of one of its processes by itself, and to start all of them.
_NOTICE_S = 10.0


@dataclass(frozen=True)
class Fault:
    """Why a campaign has to end; without a ``stop_reason`` nothing may be recorded of it."""

    stop_reason: str | None
    message: str


class Guard:
    """A thread that ends a campaign before its surroundings do. ``fault`` is the first thing that it found.

    Parameters
    ----------
    layout : RunLayout
    lock : CampaignLock
        Kept alive by a heartbeat.

    Attributes
    ----------
    on_fault : callable
        Told once.
    components : set of ProcessId
        radical's processes as last seen while all of them lived.
    """

    def __init__(self, layout: RunLayout, lock: CampaignLock) -> None:
        self.fault: Fault | None = None
        self.on_fault: Callable[[Fault], None] = lambda fault: None
        self.components: dict[ProcessId, str] = {}
        self._folders = [layout.root]
        self._lock = lock
        self._pilot: RunLayout | None = None
        self._tasks: HungTasks | None = None
        self._pilot_since = 0.0
        self._is_closing: Callable[[], bool] = lambda: False
        self._seen: dict[ProcessId, str] = {}
        self._missing_since: float | None = None
        self._troubled = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)

    def __enter__(self) -> Guard:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def add_folder(self, folder: Path) -> None:
        """Keep an eye on the room in another folder."""
        self._folders.append(folder)

    def watch_pilot(self, layout: RunLayout, is_closing: Callable[[], bool], tasks: HungTasks | None = None) -> None:
        """From now on radical's processes on this host are all to live, and its tasks not to hang, until it closes."""
        self._tasks = tasks
        self._is_closing = is_closing
        self._pilot_since = time.monotonic()
        self._pilot = layout

    @property
    def has_lost_the_lock(self) -> bool:
        """Whether another launcher may have the run folder: it is not to be written to any more."""
        return self.fault is not None and self.fault.stop_reason is None

    def end_processes(self, layout: RunLayout, grace_s: float = GRACE_S) -> None:
        """End the campaign's processes, but not those of a launcher that has the run folder by now."""
        if not self.has_lost_the_lock:
            end_processes(layout, grace_s, also=self.components)
        elif not self._lock.is_taken_here():
            end_processes(layout, grace_s, also=self.components, tell_agents=False)
        else:
            # The other one has ended what it found, and has processes of its own.
            for process in self.components:
                process.kill()

    def find_trouble(self) -> str | None:
        """What is wrong with the campaign's folders now."""
        return next((trouble for folder in self._folders if (trouble := find_trouble(folder)) is not None), None)

    def _watch(self) -> None:
        # Signals are for the main thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        last_beat = float("-inf")
        while True:
            now = time.monotonic()
            fault = self._check_folders()
            if fault is None and now - last_beat >= HEARTBEAT_S:
                last_beat = now
                fault = self._beat()
            fault = fault or self._check_pilot(now)
            if fault is None and self._tasks is not None and not self._is_closing():
                self._tasks.look(now)
            if fault is not None and self.fault is None:
                logger.info("%s", fault.message)
                self.fault = fault
                self.on_fault(fault)
            if self._over.wait(_LOOK_S):
                return

    def _check_folders(self) -> Fault | None:
        trouble = self.find_trouble()
        # A network file system may be away for a moment.
        was_troubled, self._troubled = self._troubled, trouble is not None
        return Fault("disk", trouble) if trouble is not None and was_troubled else None

    def _beat(self) -> Fault | None:
        try:
            self._lock.beat()
        except LockLost as error:
            return Fault(None, str(error))
        except RecordError as error:
            return Fault(None, f"{error}: somebody else has written it")
        except OSError as error:
            # The next look at the folder tells whether it lasts.
            logger.info("no heartbeat: %s", explain(error, self._lock.path) or error)
        return None

    def _check_pilot(self, now: float) -> Fault | None:
        if self._pilot is None or self._is_closing():
            self._missing_since = None
            return None
        if now - self._pilot_since < _NOTICE_S:
            # Those of two looks: what is there for a moment only is no component.
            seen, self._seen = self._seen, find_components(self._pilot)
            self.components |= {process: name for process, name in self._seen.items() if process in seen}
            return None
        gone = [name for process, name in self.components.items() if not process.lives]
        if not gone:
            self._missing_since = None
            return None
        self._missing_since = self._missing_since or now
        if now - self._missing_since < _NOTICE_S:
            return None
        # Of many, that one on which the others depend.
        first = min(gone, key=lambda name: (not name.startswith("rp.agent."), name))
        more = f" and {len(gone) - 1} more of radical's processes" if len(gone) > 1 else ""
        return Fault("pilot_lost", f"the pilot was lost: {first}{more} ended unasked")
