"""The tasks of a campaign: each is one process that reads its order, computes, and publishes its result whole.

``python -m entk_app.tasks KIND RUN ORDER`` runs one; tests and the in-process runner call :func:`run_task`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from entk_app.errors import EntkAppError
from entk_app.layout import RunLayout

KINDS = ("simulate", "train", "analyse")


def run_task(kind: str, run: Path, order: Path) -> None:
    """Run one task in this process.

    Parameters
    ----------
    kind : {'simulate', 'train', 'analyse'}
    run : Path
        Run folder.
    order : Path
        The task's order, written by the campaign.
    """
    if kind not in KINDS:
        raise EntkAppError(f"there is no task kind '{kind}'; there are: {', '.join(KINDS)}")
    import_module(f"entk_app.tasks.{kind}").run(RunLayout(run), order)
