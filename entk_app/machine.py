"""The pilot's devices, divided among tasks. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from entk_app.errors import SettingsError
from entk_app.settings import Settings
from entk_app.steering import Slots


@dataclass(frozen=True)
class Machine:
    """What the pilot has, and how it is divided among tasks.

    Attributes
    ----------
    cores, gpus : int
        Of the whole pilot.
    slots : Slots
    slot_cores : tuple of int
        Cores beside each GPU, or of the task in each slot without GPUs; together all of the pilot where it is one node.
    node_cores : int
        Cores of a node, which a single task cannot exceed.
    allow_cpu : bool
        Whether a task that was given a GPU may run without it.
    is_concurrent : bool
        Whether learning has slots of its own at all times.
    sims_per_gpu : int
        Simulations that share a GPU and the cores beside it; 1 without GPUs.
    """

    cores: int
    gpus: int
    slots: Slots
    slot_cores: tuple[int, ...]
    node_cores: int
    allow_cpu: bool = False
    is_concurrent: bool = False
    sims_per_gpu: int = 1

    def simulation_cores(self, place: int) -> int:
        n = self.sims_per_gpu
        if self.is_concurrent:
            # Which simulations run beside one another is not known beforehand.
            return min(self.slot_cores) // n
        device, part = divmod(place, n)
        share, rest = divmod(self.slot_cores[device % len(self.slot_cores)], n)
        # Over several nodes larger pieces might not fit together.
        return share + (part < rest and self.cores == self.node_cores)

    def training_cores(self, place: int) -> int:
        """Those of its slot beside simulations or a GPU, else an equal share of all."""
        turn = place % self.slots.learn
        if self.slots.is_split:
            return min(sum(self._learning_cores()[turn :: self.slots.learn]), self.node_cores)
        if self.gpus:
            return self.slot_cores[turn]
        return min(max(1, self.cores // self.slots.learn), self.node_cores)

    def _learning_cores(self) -> tuple[int, ...]:
        """Cores of the slots that do not simulate; on GPUs, one GPU a training."""
        rest = self.slot_cores[self.slots.simulate // self.sims_per_gpu :]
        return rest[: self.slots.learn] if self.gpus else rest

    @property
    def analysis_cores(self) -> int:
        if self.is_concurrent:
            # Simulations go on beside it. Over several nodes its slots may be on different ones.
            is_one_node = self.cores == self.node_cores
            return sum(self._learning_cores()) if is_one_node else self.slot_cores[-1]
        return min(self.cores, self.node_cores)

    @property
    def gpus_per_task(self) -> int:
        """Devices that a task sees."""
        return 1 if self.gpus else 0

    @property
    def gpus_per_simulation(self) -> float:
        """What a simulation holds of its device."""
        if self.sims_per_gpu == 1:
            return self.gpus_per_task
        # Rounded down: three thirds must not be more than a device.
        return math.floor(1e6 / self.sims_per_gpu) / 1e6


def divide_machine(
    settings: Settings,
    cores: int,
    gpus: int,
    nodes: int = 1,
    allow_cpu: bool = False,
) -> Machine:
    """Divide the devices of a pilot's nodes among tasks: GPUs where there are any, else cores.

    Parameters
    ----------
    settings : Settings
    cores, gpus : int
        Of the whole pilot.
    nodes : int
        Nodes, of equal size.
    allow_cpu : bool
        Whether a task that was given a GPU may run without it.

    Returns
    -------
    Machine
        With GPUs and no word of the user, a quarter of them learns (at most one a model) and the others simulate,
        ``resource.sims_per_gpu`` simulations each: 12 + 4 on a DGX-2. Without GPUs the stages take turns on all
        cores, unless the coupling is concurrent.

    Raises
    ------
    SettingsError
        More is asked for than there is.
    """
    asked = settings.resource
    if gpus % nodes:
        raise SettingsError(
            f"resource.gpus = {gpus}: divided among {nodes} nodes of {asked.label}: ask for a multiple of {nodes}"
        )
    node_cores, node_gpus = cores // nodes, gpus // nodes
    sims_per_gpu = asked.sims_per_gpu if gpus else 1
    in_node = min(node_gpus, node_cores) or max(1, node_cores // (asked.cores_per_simulation or 1))
    share, rest = divmod(node_cores, in_node)
    if share < sims_per_gpu:
        raise SettingsError(
            f"resource.sims_per_gpu = {sims_per_gpu}: {in_node} GPUs of {asked.label} have {node_cores} cores between "
            f"them, and every simulation needs one; at most {share}"
        )
    per_simulation = asked.cores_per_simulation or (share // sims_per_gpu if gpus else 1)
    if per_simulation > node_cores:
        raise SettingsError(
            f"resource.cores_per_simulation = {per_simulation}: a node of {asked.label} has {node_cores} cores for "
            "this campaign"
        )
    if per_simulation * sims_per_gpu * in_node > node_cores:
        each = "one" if sims_per_gpu == 1 else sims_per_gpu
        raise SettingsError(
            f"resource.cores_per_simulation = {per_simulation}: {sims_per_gpu * in_node} simulations, {each} a GPU, "
            f"have {node_cores} cores of {asked.label} between them; at most {share // sims_per_gpu}"
        )
    per_slot = sims_per_gpu * per_simulation if asked.cores_per_simulation or not gpus else share
    # What does not divide goes to the first slots; over several nodes the pieces might not fit together.
    larger = rest if gpus and nodes == 1 and asked.cores_per_simulation is None else 0
    total = nodes * in_node
    slot_cores = tuple(per_slot + (place < larger) for place in range(total))
    return Machine(
        cores=cores,
        gpus=gpus,
        slots=_share_devices(_split_slots(settings, total, bool(gpus)), sims_per_gpu, settings.learns),
        slot_cores=slot_cores,
        node_cores=node_cores,
        allow_cpu=allow_cpu,
        is_concurrent=settings.coupling == "concurrent",
        sims_per_gpu=sims_per_gpu,
    )


def _share_devices(devices: Slots, sims_per_gpu: int, learns: bool) -> Slots:
    """Slots of tasks from a split of devices: several simulations a device, one training."""
    # Where nothing trains and nothing is set aside, all slots take turns, however many there are.
    learn = devices.learn if learns or devices.is_split else devices.learn * sims_per_gpu
    return Slots(devices.total * sims_per_gpu, devices.simulate * sims_per_gpu, learn)


def _split_slots(settings: Settings, total: int, has_gpus: bool) -> Slots:
    asked, n_models = settings.resource, len(settings.train.latent_dims) if settings.learns else 1
    for key, value in (("md_slots", asked.md_slots), ("ml_slots", asked.ml_slots)):
        if (value or 0) > total:
            raise SettingsError(
                f"resource.{key} = {value}: {asked.label} has {total} slots for this campaign; "
                f"--set resource.{key}=null takes what there is"
            )
    if asked.md_slots and asked.ml_slots and asked.md_slots + asked.ml_slots > total:
        raise SettingsError(
            f"resource.md_slots = {asked.md_slots} and resource.ml_slots = {asked.ml_slots} are "
            f"{asked.md_slots + asked.ml_slots} slots: {asked.label} has {total} for this campaign; "
            "--set resource.md_slots=null --set resource.ml_slots=null takes what there is"
        )
    is_concurrent = settings.coupling == "concurrent"
    if settings.is_control:
        # Nothing learns: every slot that may simulate does, from the first iteration to the last.
        simulate = asked.md_slots or total
        return Slots(simulate, simulate, simulate)
    if not settings.learns and not is_concurrent:
        # An analysis without models is short: no slot is set aside for it.
        return Slots(total, asked.md_slots or total, total)
    if asked.md_slots is None and asked.ml_slots is None and not has_gpus and not is_concurrent:
        return Slots(total, total, min(total, n_models))
    quarter = max(total // 4, int(is_concurrent))
    learn = asked.ml_slots or (total - asked.md_slots if asked.md_slots else quarter)
    learn = min(learn, n_models)
    simulate = asked.md_slots or total - learn
    if is_concurrent and not (learn and simulate):
        raise SettingsError(
            f"coupling = concurrent: learning needs a slot beside the simulations; {asked.label} has {total} for this "
            f"campaign, {simulate} of them for simulations; take a larger resource, or coupling = staged"
        )
    if not learn or not simulate:
        # Too few devices to set some aside: simulations and trainings take turns on all of them.
        return Slots(total, asked.md_slots or total, min(asked.ml_slots or total, n_models))
    return Slots(total, simulate, learn)
