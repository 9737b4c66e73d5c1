"""One task as a process: exit code 0 when its result is published, 1 otherwise, with the reason on standard error.

The reason is written beside the order as well, for the campaign to read (:class:`entk_app.records.TaskFailure`).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

from entk_app.errors import EntkAppError, Interrupted
from entk_app.layout import RunLayout
from entk_app.records import TaskFailure
from entk_app.settings import build_settings, read_config
from entk_app.tasks import end_in_order_on_sigterm, hang, note_failure, run_task, write_failure

logger = logging.getLogger("entk_app.tasks")


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print("usage: python -m entk_app.tasks KIND RUN ORDER", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    kind, run, order = arguments[0], Path(arguments[1]), Path(arguments[2])
    # A run folder's files are its owner's to change.
    os.umask(os.umask(0o022) | 0o022)
    if kind == "simulate":
        # It looks for requests every second; a training would go on to the end of its epoch.
        end_in_order_on_sigterm()
    try:
        if order.exists():
            settings = build_settings(read_config(RunLayout(run).settings))
            hang.watch(settings.faults.hang_minutes, lambda silent: _end_hung(order, silent))
        run_task(kind, run, order)
    except Interrupted as error:
        logger.error("%s task: %s", kind, error)
        return error.exit_code
    except EntkAppError as error:
        logger.error("%s task: %s", kind, error)
        note_failure(RunLayout(run), order, error)
        return error.exit_code
    except Exception as error:
        # The top of the process: whatever failed, its traceback belongs into the task's log.
        logger.exception("%s task failed", kind)
        note_failure(RunLayout(run), order, error)
        return 1
    return 0


def _end_hung(order: Path, silent_minutes: float) -> None:
    reason = f"no progress for {silent_minutes:.3g} minutes (faults.hang_minutes): it has hung"
    logger.error("%s", reason)
    write_failure(order, TaskFailure(kind="hung", reason=reason, unix=time.time()))
    # The thread that hangs would hold an ordinary exit up.
    os._exit(1)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Its result is published: taking TensorFlow down in order would hold the slot for another second.
    os._exit(code)
