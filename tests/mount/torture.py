"""kill -9 of the mount daemon, over and over, in the middle of cp, git, sqlite and random writes.

A round mounts, lets all kinds of work run, kills the daemon at a random instant, mounts again and compares
with what the ledger says was promised; in every fourth round one of the servers is dead, and some kills meet
the replay. At the end the machine is lost and its file system made anew with the recovery key: what was
fsynced is there. The old folder, brought back, is refused, and the new one goes on. `scripts/torture` runs it
for long.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.mount.ledger import Broken, Ledger
from tests.mount.torture_work import Copies, Files, Git, InPlace, Transactions, Work
from tests.processes import (
    TRACE,
    FileSystemShape,
    LocalGrid,
    MountedFileSystem,
    clean_up,
    end_processes,
    run,
)

LOCKED = 11
WORKED_S = (0.2, 4.0)
"""How long work runs before the kill; short times are as likely as long ones, by their logarithm."""
SERVERS = 6


class Torture:
    """One run in an empty directory. What is promised and not kept raises Broken."""

    def __init__(self, directory: Path, seed: int, say: Callable[[dict[str, Any]], None]) -> None:
        self.directory, self.seed = directory, seed
        self.chance = random.Random(seed)
        self.grid = LocalGrid(directory / "grid")
        self.mounted = MountedFileSystem(self.grid, directory / "home", directory / "mnt")
        self.ledger = Ledger()
        self.kills = 0
        self._say = say
        self._works: list[Work] = []
        self._began = time.monotonic()

    def begin(self) -> None:
        self.grid.up(SERVERS)
        self.mounted.create(FileSystemShape())
        self.mounted.mount()
        root, ledger, seed = self.mounted.path, self.ledger, self.seed
        source = self.directory / "source"
        self._works = [
            Files(root, ledger, seed),
            InPlace(root, ledger, seed),
            Copies(root, ledger, seed, source),
            Git(root, ledger, seed),
            Transactions(root, ledger, seed),
        ]

    def round(self) -> None:
        """Work, kill, mount, compare."""
        told: dict[str, Any] = {"round": self.kills + 1}
        dead = self.chance.randrange(SERVERS) if self.chance.random() < 0.25 else None
        if dead is not None:
            self.grid.kill(dead)
            told["dead_server"] = dead
        before = self._counted()
        told["killed_after_s"] = round(self._work_and_kill(), 3)
        told["done"] = dict(sorted((self._counted() - before).items()))
        told["killed_in_replay"] = self.chance.random() < 0.2 and self._kill_while_mounting()
        if dead is not None and self.chance.random() < 0.5:
            self.grid.up()
        began = time.monotonic()
        self.mounted.mount()
        told["mount_s"] = round(time.monotonic() - began, 3)
        told |= self._check(is_lost=False)
        if dead is not None:
            self.grid.up()
        self._say(told)

    def lose(self) -> None:
        """The machine is lost in the middle of its work, another one recovers, and the old one comes back."""
        before = self._counted()
        told: dict[str, Any] = {"round": "lost", "killed_after_s": round(self._work_and_kill(), 3)}
        told["done"] = dict(sorted((self._counted() - before).items()))
        old = self.mounted
        self._command(old, "umount", old.path)
        key = self.directory / "recovery-key"
        (old.home / "test.recovery-key").rename(key)
        lost = self.directory / "lost"
        old.home.rename(lost)
        self.mounted = replace(old, home=self.directory / "new")
        self.mounted.home.mkdir(mode=0o700)
        began = time.monotonic()
        servers = self.grid.servers_file
        self._command(self.mounted, "recover", "test", "--servers", servers, "--recovery-key-file", key)
        told["recover_s"] = round(time.monotonic() - began, 3)
        self.mounted.mount()
        told |= self._check(is_lost=True)
        came_back = replace(old, home=lost, path=self.directory / "old")
        done = came_back.mount(good=(0, LOCKED))
        if done.returncode != LOCKED or "another client has written" not in done.stderr:
            raise Broken(f"the machine that was lost may write again: {done.stderr or 'it is mounted'}")
        told["old_client"] = "refused"
        self._go_on()
        self._say(told)

    def _go_on(self) -> None:
        """The recovered machine writes, syncs, and reads it again from the grid."""
        body = random.Random(self.seed).randbytes(300_000)
        with (self.mounted.path / "goes-on").open("xb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        self.mounted.remount()
        if (self.mounted.path / "goes-on").read_bytes() != body:
            raise Broken("the recovered machine does not go on")

    def summary(self) -> dict[str, Any]:
        return {
            "kills": self.kills,
            "seconds": round(time.monotonic() - self._began, 1),
            "done": dict(sorted(self._counted().items())),
            "paths": len(self.ledger.accounts),
        }

    def tear_down(self) -> None:
        for work in self._works:
            work.interrupt()
        self.mounted.tear_down()
        for work in self._works:
            work.abandon()
        self.grid.tear_down()

    def _work_and_kill(self) -> float:
        """Returns the seconds from the start of the work to the kill."""
        low, high = WORKED_S
        seconds = low * (high / low) ** self.chance.random()
        sync_at = self.chance.random() * seconds if self.chance.random() < 0.4 else None
        for work in self._works:
            work.start()
        began = time.monotonic()
        if sync_at is not None:
            time.sleep(sync_at)
            self._sync()
        time.sleep(max(0.0, began + seconds - time.monotonic()))
        took = time.monotonic() - began
        self.mounted.kill_daemon()
        self.kills += 1
        for work in self._works:
            work.stop()
        return took

    def _sync(self) -> None:
        mark, marks = self.ledger.mark(), [work.mark() for work in self._works]
        self.mounted.sync()
        self.ledger.in_grid(mark)
        for work, known in zip(self._works, marks, strict=True):
            work.synced(known)

    def _kill_while_mounting(self) -> bool:
        """Begin to mount and kill the daemon; whether it was not mounted yet."""
        program = Path(sys.executable).with_name("gridfs")
        words = [str(program), "mount", self.mounted.name, str(self.mounted.path)]
        environment = {**os.environ, "GRIDFS_HOME": str(self.mounted.home)}
        with subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as mounting:
            time.sleep(0.3 + 0.9 * self.chance.random())
            end_processes([pid for pid in self.mounted.daemon_pids() if pid != mounting.pid], signal.SIGKILL)
            failed = mounting.wait() != 0
        end_processes(self.mounted.daemon_pids(), signal.SIGKILL)
        self.kills += 1
        return failed

    def _check(self, *, is_lost: bool) -> dict[str, Any]:
        began = time.monotonic()
        paths = len(self.ledger.accounts)
        read = self.ledger.check(self.mounted.path, is_lost=is_lost)
        for work in self._works:
            work.check(is_lost=is_lost)
        return {"paths": paths, "bytes": read, "check_s": round(time.monotonic() - began, 3)}

    def _counted(self) -> Counter[str]:
        return sum(
            (Counter({f"{w.name} {k}": n for k, n in w.counted.items()}) for w in self._works), Counter()
        )

    @staticmethod
    def _command(machine: MountedFileSystem, *words: object) -> None:
        program = Path(sys.executable).with_name("gridfs")
        run([program, *map(str, words)], home=machine.home)


@contextmanager
def torture(directory: Path, seed: int, say: Callable[[dict[str, Any]], None]) -> Iterator[Torture]:
    """A run that has begun; whatever it started is ended with the block."""
    one = Torture(directory, seed, say)
    try:
        one.begin()
        yield one
    finally:
        one.tear_down()


def main() -> None:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, metavar="M", help="go on for so long [10, or until --kills]")
    parser.add_argument("--kills", type=int, metavar="N", help="go on until so many daemons were killed")
    parser.add_argument("--seed", type=int, default=time.time_ns() % (1 << 32), metavar="S")
    given = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    os.environ[TRACE] = uuid.uuid4().hex
    os.umask(0o022)
    minutes = given.minutes if given.minutes is not None else 10.0 if given.kills is None else float("inf")
    end = time.monotonic() + 60 * minutes
    kills_max = given.kills if given.kills is not None else 1 << 60

    def say(told: dict[str, Any]) -> None:
        print(json.dumps(told), flush=True)

    with tempfile.TemporaryDirectory(prefix="gridfs-torture", ignore_cleanup_errors=True) as name:
        try:
            with torture(Path(name), given.seed, say) as one:
                try:
                    while time.monotonic() < end and one.kills < kills_max:
                        one.round()
                    one.lose()
                except AssertionError as broken:
                    say({"seed": given.seed, "broken": str(broken), **one.summary()})
                    sys.exit(1)
                say({"seed": given.seed, "broken": None, **one.summary()})
        finally:
            clean_up(os.environ[TRACE], Path(name))


if __name__ == "__main__":
    main()
