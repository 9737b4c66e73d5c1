"""Pauses in three loops of RADICAL-EnTK that spin or wait too long. The only place where EnTK is changed.

EnTK's client polls without sleeping: the thread that looks for new work (``WFprocessor._create_workload``) and the
main thread that looks at the pilot (``ResourceManager.get_resource_allocation_state``) take up to a core between them,
on the node where the simulations run. And its task manager waits 10 s for work that cannot come when the campaign is
over. See docs/decisions/0004-pauses-in-entk.md; a test measures the launcher's CPU time.
"""

from __future__ import annotations

import logging
import time
from importlib.metadata import version
from typing import Any

logger = logging.getLogger(__name__)

#: Versions whose loops were read and measured; with others the patch is applied where the names still exist.
TESTED = ("1.103",)

WORKLOAD_PAUSE_S = 0.1
PILOT_PAUSE_S = 0.2
QUEUE_TIMEOUT_S = 0.5


class _ImpatientQueue:
    """A queue whose blocking ``get`` gives up early; its caller loops on ``queue.Empty`` anyway."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return self._inner.get(block=block, timeout=min(timeout or QUEUE_TIMEOUT_S, QUEUE_TIMEOUT_S))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def apply_pauses() -> bool:
    """Put the pauses in, once; False where this EnTK has other names and runs unchanged."""
    from radical.entk.appman.wfprocessor import WFprocessor
    from radical.entk.execman.rp import ResourceManager, TaskManager

    found = version("radical.entk")
    if not found.startswith(TESTED):
        logger.warning("radical.entk %s: the pauses were tested with %s", found, ", ".join(TESTED))
    targets = (
        (WFprocessor, "_create_workload", _pause_when_idle),
        (ResourceManager, "get_resource_allocation_state", _pause_always),
        (TaskManager, "_process_tasks", _poll_faster),
    )
    if not all(hasattr(owner, name) for owner, name, _ in targets):
        logger.warning("radical.entk %s has other loops: the launcher may use a whole core", found)
        return False
    for owner, name, wrap in targets:
        original = getattr(owner, name)
        if not hasattr(original, "entk_app_original"):
            wrapped = wrap(original)
            wrapped.entk_app_original = original
            setattr(owner, name, wrapped)
    return True


def _pause_when_idle(original: Any) -> Any:
    def create_workload(self: Any) -> Any:
        workload, stages = original(self)
        if not workload:
            time.sleep(WORKLOAD_PAUSE_S)
        return workload, stages

    return create_workload


def _pause_always(original: Any) -> Any:
    def get_resource_allocation_state(self: Any) -> Any:
        time.sleep(PILOT_PAUSE_S)
        return original(self)

    return get_resource_allocation_state


def _poll_faster(original: Any) -> Any:
    def process_tasks(self: Any, task_queue: Any, tmgr: Any) -> Any:
        return original(self, _ImpatientQueue(task_queue), tmgr)

    return process_tasks
