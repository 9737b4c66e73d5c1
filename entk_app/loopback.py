"""Keeps radical's sockets on the loopback interface, where its pilot runs on one node together with the launcher.

radical.utils binds its ZeroMQ bridges to all interfaces and lets nobody choose; what it advertises is the address of
the interface that ``RADICAL_DEFAULT_IFACE`` names. So the wildcard is replaced where Python's ``zmq`` binds a socket,
which is its public interface. A copy of this module goes on the ``PYTHONPATH`` of radical's processes as
``sitecustomize``, which Python imports when it starts. It imports the standard library only. See
docs/decisions/0012-sockets-on-loopback.md.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_ANYWHERE, _HERE = "tcp://*:", "tcp://127.0.0.1:"


def prepare(folder: Path, environment: MutableMapping[str, str]) -> None:
    """Keep the sockets of this process, and of those that are started with this environment, on this node.

    Parameters
    ----------
    folder : Path
        A new or earlier folder for the hook.
    environment : mapping
        Changed: ``PYTHONPATH`` and ``RADICAL_DEFAULT_IFACE``.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_bytes(Path(__file__).read_bytes())
    before = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), *(entry for entry in before if entry != str(folder))])
    environment["RADICAL_DEFAULT_IFACE"] = "lo"
    install()


def install() -> None:
    """Let ``zmq`` bind to loopback where it is asked for all interfaces, now or when it is imported."""
    change_on_import("zmq", _narrow)


def change_on_import(name: str, change: Callable[[Any], None]) -> None:
    """Change a module now, or when it is imported: most Python processes never import it."""
    if name in sys.modules:
        change(sys.modules[name])
    elif not any(isinstance(finder, _Finder) and finder.name == name for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, change))


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the import of one module."""

    def __init__(self, name: str, change: Callable[[Any], None]) -> None:
        self.name = name
        self.change = change

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.change(module)

            loader.exec_module = exec_module
        return spec


def _narrow(zmq: ModuleType) -> None:
    bind = zmq.Socket.bind
    if hasattr(bind, "entk_app_original"):
        return

    def narrow_bind(self: Any, address: str) -> Any:
        if isinstance(address, str) and address.startswith(_ANYWHERE):
            address = _HERE + address.removeprefix(_ANYWHERE)
        return bind(self, address)

    narrow_bind.entk_app_original = bind  # type: ignore[attr-defined]
    zmq.Socket.bind = narrow_bind  # type: ignore[attr-defined]


def run_shadowed(own: Path) -> None:
    """The ``sitecustomize`` that the one in this folder stands before: the site's, or another of this application."""
    entries = [Path(entry).resolve() for entry in sys.path]
    after = entries.index(own) + 1 if own in entries else 0
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", [str(entry) for entry in entries[after:]])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    install()
    run_shadowed(Path(__file__).resolve().parent)
