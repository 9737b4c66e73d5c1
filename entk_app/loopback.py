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
from collections.abc import MutableMapping, Sequence
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
    if "zmq" in sys.modules:
        _narrow(sys.modules["zmq"])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for the import of ``zmq``: most Python processes never do."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "zmq":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _narrow(module)

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


def _run_shadowed(own: Path) -> None:
    """The ``sitecustomize`` of the site, which this one stands before."""
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != own]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    install()
    _run_shadowed(Path(__file__).resolve().parent)
