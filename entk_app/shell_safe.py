"""Names of folders that RADICAL-Pilot's scripts, which do not quote them, can take; and its scratch folder."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from entk_app.layout import RunLayout
from entk_app.workflow import is_shell_safe

logger = logging.getLogger(__name__)

#: Name of a folder where radical writes while the run folder cannot be it.
_SCRATCH_PREFIX = "entk-app-"


@contextmanager
def make_shell_safe(layout: RunLayout, scratch: Path | None) -> Iterator[tuple[RunLayout, Path]]:
    """Run folder and Python under names without spaces or quotes, which RADICAL-Pilot's scripts cannot take.

    Where their own names have some, both are reached through links, and what radical writes is moved into the run
    folder at the end; likewise where radical is to write to a scratch folder.
    """
    prefix = Path(sys.prefix)
    if is_shell_safe(layout.root) and is_shell_safe(prefix) and scratch is None:
        yield layout, prefix
        return
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=scratch))
    (folder / "run").symlink_to(layout.root, target_is_directory=True)
    environment = prefix
    if not is_shell_safe(prefix):
        environment = folder / "environment"
        link_environment(prefix, environment)
    safe = RunLayout(folder / "run", scratch=folder)
    for part in (safe.radical, safe.logs):
        part.mkdir()
    try:
        yield safe, environment
    finally:
        # Not in what is about to be removed; the run folder may have gone.
        os.chdir(layout.root if layout.root.is_dir() else "/")
        try:
            bring_home(safe, layout)
        except OSError as error:
            # Whoever resumes the campaign finds it there.
            logger.warning("what radical wrote stays in %s: %s", folder, error)


def bring_home(away: RunLayout, layout: RunLayout) -> None:
    """Move what radical wrote elsewhere into the run folder, where an earlier pilot's is already."""
    for source, target in ((away.radical, layout.radical), (away.logs, layout.logs)):
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True)
    if away.scratch is not None and away.scratch.name.startswith(_SCRATCH_PREFIX):
        shutil.rmtree(away.scratch)


def link_environment(prefix: Path, link: Path) -> None:
    """The Python environment once more by links; scripts that name its path are written anew."""
    (link / "bin").mkdir(parents=True)
    for entry in prefix.iterdir():
        if entry.name != "bin":
            (link / entry.name).symlink_to(entry)
    old, new = str(prefix).encode(), str(link).encode()
    for entry in (prefix / "bin").iterdir():
        own = link / "bin" / entry.name
        is_script = entry.name.startswith(("radical", "activate")) and not entry.is_symlink()
        content = entry.read_bytes() if is_script else b""
        if old in content:
            own.write_bytes(content.replace(old, new))
            own.chmod(0o755)
        else:
            own.symlink_to(entry)
