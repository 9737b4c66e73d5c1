"""Lets RADICAL-Pilot's scheduler put several tasks on one GPU, each of which asks for a fraction of it.

radical.pilot 1.103 takes a fraction, and looks for a device with so much left; but it then books the device as a
whole (``Continuous._change_slot_states``), so that nobody ever gets the rest. Here a fraction is booked as one.
Fractions fill the first devices of the first nodes, whole devices are taken from the last: so simulations close the
gaps that others leave, and trainings find whole devices. A copy of this module goes on the ``PYTHONPATH`` of the agent
as ``sitecustomize``, beside one of :mod:`entk_app.loopback`. It imports nothing else but the standard library. See
docs/decisions/0021-several-simulations-a-gpu.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "sitecustomize":
    from entk_app_loopback import change_on_import, run_shadowed
else:
    from entk_app.loopback import change_on_import, run_shadowed

SCHEDULER = "radical.pilot.agent.scheduler.continuous"

#: Methods of the scheduler that are wrapped or replaced.
METHODS = ("schedule_task", "_iterate_nodes", "_find_resources", "_change_slot_states")

#: Sums of fractions are kept to so many digits: a device whose tasks have all ended is free, not nearly so.
DIGITS = 6


def write_hook(folder: Path) -> str:
    """Write the hook, and tell the shell line that puts it before all else in the agent's Python processes.

    Parameters
    ----------
    folder : Path
        A new or earlier folder, seen by the node of the agent, whose path RADICAL-Pilot's scripts can take.
    """
    folder.mkdir(exist_ok=True)
    own = Path(__file__)
    (folder / "sitecustomize.py").write_bytes(own.read_bytes())
    (folder / "entk_app_loopback.py").write_bytes(own.with_name("loopback.py").read_bytes())
    # As plain as can be: it is expanded by the batch job's script too.
    return f"export PYTHONPATH={folder}:$PYTHONPATH"


def install() -> None:
    """Change the scheduler, now or when it is imported."""
    change_on_import(SCHEDULER, change_scheduler)


def change_scheduler(module: Any) -> None:
    """Let the module's ``Continuous`` share devices."""
    scheduler = module.Continuous
    schedule, find, book = scheduler.schedule_task, scheduler._find_resources, scheduler._change_slot_states
    if hasattr(schedule, "entk_app_original"):
        return

    def schedule_task(self: Any, task: Any) -> Any:
        self._takes_last = (task["description"]["gpus_per_rank"] or 0.0) >= 1.0
        return schedule(self, task)

    def iterate_nodes(self: Any) -> Iterator[Any]:
        # The original goes on where the last task was placed: fractions would spread over all nodes.
        yield from reversed(self.nodes) if self._takes_last else self.nodes

    def find_resources(self: Any, node: Any, *args: Any, **keys: Any) -> Any:
        if not self._takes_last:
            return find(self, node, *args, **keys)
        slots = find(self, {**node, "gpus": node["gpus"][::-1]}, *args, **keys)
        for slot in slots or ():
            for gpu in slot["gpus"]:
                gpu["index"] = len(node["gpus"]) - 1 - gpu["index"]
            slot["gpus"].reverse()
        return slots

    def change_slot_states(self: Any, slots: Any, new_state: float) -> None:
        before = {node["index"]: list(node["gpus"]) for node in self.nodes}
        book(self, slots, new_state)
        sign = 1.0 if new_state == module.rpc.BUSY else -1.0
        nodes = {node["index"]: node["gpus"] for node in self.nodes}
        for slot in slots:
            held, gpus = before[slot["node_index"]], nodes[slot["node_index"]]
            for gpu in slot["gpus"]:
                index = gpu["index"]
                held[index] = gpus[index] = round(held[index] + sign * gpu["occupation"], DIGITS)

    schedule_task.entk_app_original = schedule  # type: ignore[attr-defined]
    changed = (schedule_task, iterate_nodes, find_resources, change_slot_states)
    for name, method in zip(METHODS, changed, strict=True):
        setattr(scheduler, name, method)


if __name__ == "sitecustomize":
    install()
    run_shadowed(Path(__file__).resolve().parent)
