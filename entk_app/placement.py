"""Which devices and cores a task got: chosen by RADICAL-Pilot or the launch method, looked up and kept here.

A task calls :func:`take_place` before it imports any GPU library. Imports none itself.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Mapping, MutableMapping, Sequence

from entk_app.errors import DeviceError
from entk_app.records import Placement

logger = logging.getLogger(__name__)

#: Devices of the launcher, in the order of RADICAL-Pilot's numbers; set by the launcher where it has some only.
DEVICES_VARIABLE = "ENTK_APP_DEVICES"

#: GPUs of a node: a task's cores are the share of its device among so many.
SHARES_VARIABLE = "ENTK_APP_NODE_GPUS"

#: Tasks that share a device: its cores are divided among so many.
SHARERS_VARIABLE = "ENTK_APP_SHARERS"

#: Cores that an emulated node pretends to have.
EMULATED_VARIABLE = "ENTK_APP_EMULATED_CORES"


#: Held as long as this process lives: its part of a shared device.
_parts: list[socket.socket] = []


def take_place(environment: MutableMapping[str, str] | None = None) -> Placement:
    """Choose this process' device and cores, and tell which they are.

    Turns RADICAL-Pilot's device number into the launcher's own, and binds the process to its device's share of the
    node's cores (which FORK does not) where both are real.

    Parameters
    ----------
    environment : mapping
        Changed in place: ``CUDA_VISIBLE_DEVICES``; None: ``os.environ``.

    Raises
    ------
    DeviceError
        The device is none of the launcher's.
    """
    variables = os.environ if environment is None else environment
    assigned = [part for part in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    emulated = variables.get(EMULATED_VARIABLE)
    allowed = list(range(int(emulated))) if emulated else sorted(os.sched_getaffinity(0))
    cores, pinned = find_share(allowed, assigned, variables.get(SHARES_VARIABLE)), False
    sharers = int(variables.get(SHARERS_VARIABLE) or 1)
    if sharers > 1 and len(cores) >= sharers:
        part = claim_part(variables.get("RP_SESSION_ID", ""), assigned[0], sharers)
        cores = cores if part is None else find_part(cores, sharers, part)
    if cores and not emulated and len(cores) < len(allowed):
        os.sched_setaffinity(0, cores)
        pinned = True
    own = variables.get(DEVICES_VARIABLE)
    if own and assigned:
        names = own.split(",")
        if max(int(number) for number in assigned) >= len(names):
            raise DeviceError(f"the task was given GPU {','.join(assigned)}, the launcher had {own} only")
        assigned = [names[int(number)] for number in assigned]
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(assigned)
    return Placement(
        # Slurm's name of the node, where a task is one of its steps.
        host=variables.get("SLURMD_NODENAME") or platform.node(),
        task=variables.get("RP_TASK_ID"),
        session=variables.get("RP_SESSION_ID"),
        devices=tuple(name_devices(assigned, variables, look_up=not emulated)),
        cores=tuple(cores or allowed),
        pinned=pinned,
        emulated=bool(emulated),
        sharers=sharers,
    )


def find_share(allowed: Sequence[int], assigned: Sequence[str], shares: str | None) -> list[int]:
    """The cores beside a device: an equal part of those allowed, the first parts one core larger where they must be.

    Parameters
    ----------
    allowed : sequence of int
        Cores of the node that the pilot may use.
    assigned : sequence of str
        RADICAL-Pilot's number of the device.
    shares : str or None
        GPUs of the node.

    Returns
    -------
    list of int
        Empty where the task is not one of one device, or there are fewer cores than devices.
    """
    if shares is None or len(assigned) != 1 or not assigned[0].isdigit():
        return []
    count, place = int(shares), int(assigned[0])
    if len(allowed) < count or place >= count:
        return []
    return find_part(allowed, count, place)


def find_part(cores: Sequence[int], count: int, place: int) -> list[int]:
    """One of so many nearly equal parts of the cores, the first parts one core larger where they must be."""
    base, rest = divmod(len(cores), count)
    first = place * base + min(place, rest)
    return list(cores[first : first + base + (place < rest)])


def claim_part(session: str, device: str, count: int) -> int | None:
    """The first part of a shared device that no living process of this node holds; None where all are held.

    RADICAL-Pilot does not tell a task which part of a device it has. A part is a socket's name in Linux's abstract
    namespace: it is of this node, no file, and free once its process is gone, however it ends.
    """
    for part in range(count):
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0entk-app:{session}:{device}:{part}")
        except OSError:
            claim.close()
            continue
        _parts.append(claim)
        return part
    return None


def name_devices(visible: Sequence[str], variables: Mapping[str, str], look_up: bool = True) -> list[str]:
    """Names of the visible devices: the driver's uuid, else Slurm's number of the node's device, else the id."""
    if not visible:
        return []
    uuids = _query_uuids() if look_up else {}
    if all(device in uuids or device.startswith("GPU-") for device in visible):
        return [uuids.get(device, device) for device in visible]
    # A step that Slurm confines sees its device as number 0, whichever it is.
    step = [part for part in variables.get("SLURM_STEP_GPUS", "").split(",") if part]
    return step if len(step) == len(visible) else list(visible)


def _query_uuids() -> dict[str, str]:
    """uuid of each device by its number, as NVIDIA's driver tells; nothing without one."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    try:
        asked = subprocess.run(
            [command, "--query-gpu=index,uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("nvidia-smi does not tell the devices' uuids: %s", error)
        return {}
    pairs = (line.split(",", 1) for line in asked.stdout.splitlines() if "," in line)
    return {index.strip(): uuid.strip() for index, uuid in pairs}
