"""The real machine, as `storage.ports.Machine`."""

from __future__ import annotations

from storage.host import OsDisk, SystemClock, SystemEntropy, ThreadOffload
from storage.ports import Machine
from storage.transport.network import SystemNetwork


def system_machine() -> Machine:
    """Adapters for this process: disk, sockets, clock, entropy and worker threads."""
    return Machine(
        disk=OsDisk(),
        network=SystemNetwork(),
        entropy=SystemEntropy(),
        clock=SystemClock(),
        offload=ThreadOffload(),
    )
