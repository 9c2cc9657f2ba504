"""A grid in one process: real code on simulated disks, network, entropy, clock and threads.

    from tests.simulation.machine import World, run_world

    async def scenario(world: World) -> None:
        server = world.add("s0")
        await world.start(server, program)      # program(machine, *, task_status)
        server.crash()

    run_world(seed, scenario)                   # same seed, same trace: the result holds its hash

`runner` makes trio deterministic and keeps the trace, `entropy` gives chance, time and inline threads
from the seed, `disk` and `sqlite` keep files that a crash tears, `network` carries bytes over links with
delay, bandwidth and faults, `machine` puts them together. Nothing here reads the real clock.
"""
