"""What signals, and the guard's findings, do to a launcher while its pilot runs."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from entk_app.guard import Fault, Guard
from entk_app.layout import RunLayout

logger = logging.getLogger(__name__)

#: Seconds that radical has after an interrupt to come out of its own clean-up, and between two more attempts; after
#: so many seconds altogether the process ends without it.
_PATIENCE_S = 15.0
_ATTEMPT_S = 5.0
_GIVE_UP_S = 60.0


class Signals:
    """First SIGINT, SIGTERM or SIGHUP: ask the tasks to end and interrupt the main thread. Second Ctrl-C: end at once.

    A Ctrl-C reaches every process of the terminal's foreground group. SIGINT and SIGHUP are therefore blocked here,
    which agent and tasks inherit; a thread of this process waits for them and interrupts the main thread, as SIGTERM
    does.
    """

    _BLOCKED = (signal.SIGINT, signal.SIGHUP)

    def __init__(self, layout: RunLayout, guard: Guard) -> None:
        self.received: list[signal.Signals] = []
        self.pilot_state: Callable[[], str | None] = lambda: None
        self.by_radical = False
        #: Where radical writes; what is to be done, the last first, when this process ends at once.
        self.layout = layout
        self.to_finish: list[Callable[[], None]] = []
        self._guard = guard
        self._pid = os.getpid()
        self._closing = False
        self._interrupting = False
        self._interrupted: float | None = None
        self._attempts = 0
        self._over = threading.Event()
        guard.on_fault = self._end_for

    def __enter__(self) -> Signals:
        # A launcher under nohup ignores SIGHUP, and goes on doing so.
        self._waited = {n for n in self._BLOCKED if signal.getsignal(n) != signal.SIG_IGN}
        # A thread that a library started before cannot be made to block: the handler is there for what it gets.
        self._before = {n: signal.signal(n, self._handle) for n in (signal.SIGTERM, *self._waited)}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._waited)
        self._thread = threading.Thread(target=self._wait, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._waited)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def request_stop(self) -> None:
        """Ask the tasks to end in order, where the run folder can still be written and is this launcher's."""
        if not self._guard.has_lost_the_lock:
            with suppress(OSError):
                self.layout.stop_request.touch()

    def only_note(self) -> None:
        """From now on the campaign is being closed anyway: a first signal changes nothing."""
        self._closing = True

    def _wait(self) -> None:
        while not self._over.is_set():
            caught = signal.sigtimedwait(self._waited, 0.2) if self._waited else None
            if caught is not None and self._note(signal.Signals(caught.si_signo)):
                self._interrupt()
            elif not self._waited:
                self._over.wait(0.2)
            self._insist()

    def _interrupt(self) -> None:
        # The handler of SIGTERM runs in the main thread and raises there.
        self._interrupting = True
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def _insist(self) -> None:
        """Interrupt again where radical does not come out of its own clean-up: its components may be dead."""
        if self._interrupted is None or self._closing:
            return
        since = time.monotonic() - self._interrupted
        if since > _GIVE_UP_S:
            logger.error("radical does not end: this process does; --resume goes on with the campaign")
            self._quit(1)
        if since > _PATIENCE_S + self._attempts * _ATTEMPT_S:
            self._attempts += 1
            logger.info("radical takes long to end: interrupted again")
            self._interrupt()

    def _end_for(self, fault: Fault) -> None:
        """The guard's word: as a first signal."""
        if self.received or self._closing:
            return
        self.request_stop()
        self._interrupted = time.monotonic()
        self._interrupt()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A fork of the launcher inherits this handler, not its task.
            os._exit(128 + number)
        if self._interrupting or self._note(signal.Signals(number)):
            self._interrupting = False
            raise KeyboardInterrupt

    def _note(self, number: signal.Signals) -> bool:
        """Take a signal in; True where the main thread is to be interrupted."""
        if not self.received:
            # RADICAL-Pilot sends itself a SIGTERM when its pilot fails: that was not the user.
            self.by_radical = number == signal.SIGTERM and self.pilot_state() == "FAILED"
        self.received.append(number)
        self.request_stop()
        if len(self.received) > 1 and number == signal.SIGTERM:
            # A batch system, or RADICAL-Pilot after a pilot that the first signal ended: the campaign is closing.
            return False
        if len(self.received) > 1:
            self._quit(130)
        if self._interrupted is None:
            self._interrupted = time.monotonic()
        return not self._closing

    def _quit(self, code: int) -> None:
        """End this process now, and everything that belongs to it."""
        self._guard.end_processes(self.layout, grace_s=0.0)
        for finish in reversed(self.to_finish):
            try:
                finish()
            except Exception:
                logger.info("left as it was", exc_info=True)
        os._exit(code)
