"""One task as a process: exit code 0 when its result is published, 1 otherwise, with the reason on standard error."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from entk_app.errors import EntkAppError
from entk_app.tasks import end_in_order_on_sigterm, run_task

logger = logging.getLogger("entk_app.tasks")


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print("usage: python -m entk_app.tasks KIND RUN ORDER", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    kind, run, order = arguments
    if kind == "simulate":
        # It looks for requests every second; a training would go on to the end of its epoch.
        end_in_order_on_sigterm()
    try:
        run_task(kind, Path(run), Path(order))
    except EntkAppError as error:
        logger.error("%s task: %s", kind, error)
        return error.exit_code
    except Exception:
        # The top of the process: whatever failed, its traceback belongs into the task's log.
        logger.exception("%s task failed", kind)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
