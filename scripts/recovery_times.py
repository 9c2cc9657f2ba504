"""How long `gridfs recover` takes, by the number of files. Run by scripts/recovery-times.

    scripts/recovery-times DIR [--counts 1000,100000] [--bytes 100]

Makes a local grid of six servers below DIR, which must not exist, and takes all of it away at the end. For
each count, the smallest first, it makes a 4-of-6 file system with so many files of --bytes bytes, a hundred
a directory, by the same code as a mount but without FUSE, waits until all is in the grid, checkpoint
included where one is due, and recovers it with the recovery key on what might be another machine. It prints

    made        seconds until all files were in the grid
    recover     seconds of the command, from its start to its end
    rebuild     seconds of these from the claim to the takeover
    read        bytes of shares read from the servers
    peak        resident memory of the command, or of a larger one before it, in MB
    first mount seconds of `gridfs mount` and an `ls` of the root afterwards

Nothing in it is a test. A million files take some ten minutes on a small machine.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import trio

from gridfs.assembly import MountOptions, Parts, open_filesystem
from gridfs.cli.unlock import unlock
from gridfs.codec.keys import KeyTree
from gridfs.grid.roster import parse_roster
from gridfs.host.home import Home
from gridfs.meta.rows import ROOT
from storage.system import system_machine

FILES_PER_DIRECTORY = 100
SCRIPTS = Path(__file__).resolve().parent
GRIDFS = Path(sys.executable).with_name("gridfs")
FOUND = re.compile(r"recovered .*: (\d+) files, .*; \d+ operations, (\d+) bytes read in ([\d.]+) s")


def run(*words: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"recovery-times: {words[0]} {words[1]} failed: {done.stderr.strip()}")
    return done.stdout


async def make_files(parts: Parts, count: int, size: int) -> None:
    names, files = parts.files.namespace, parts.files
    parent = ROOT
    for number in range(count):
        if number % FILES_PER_DIRECTORY == 0:
            name = b"folder-%d" % (number // FILES_PER_DIRECTORY)
            parent = names.make(ROOT, name, stat.S_IFDIR | 0o755, 0, 0).ino
            await trio.lowlevel.checkpoint()
            await files.pause.over()  # as a mount waits with each change
        ino = names.make(parent, b"file-%d" % number, stat.S_IFREG | 0o644, 0, 0).ino
        if size:
            handle = files.open(ino)
            await files.write(handle, 0, (b"%d " % number * size)[:size])
            files.release(handle)


def make(folder: Path, count: int, size: int) -> None:
    """Fill the file system in `folder`, as a mount would."""
    home = Home(folder)
    config = home.config()
    roster = parse_roster(home.servers_path.read_text())
    tree = KeyTree(unlock(home, config).master)

    async def work() -> None:
        async with open_filesystem(
            system_machine(), config, roster, tree, home.database_path, home.spool_path, MountOptions()
        ) as parts:
            await make_files(parts, count, size)
            await parts.files.drain()
            checkpointer = parts.checkpointer
            while checkpointer.is_due(parts.journal.base) or checkpointer.is_under_way:
                await parts.files.sync()
                await trio.sleep(0.1)

    home.lock()
    try:
        trio.run(work)
    finally:
        home.unlock()


def measure(directory: Path, count: int, size: int) -> None:
    servers = directory / "grid" / "servers"
    lost, new = directory / f"lost-{count}", directory / f"new-{count}"
    run(GRIDFS, "create", lost, "--servers", servers)
    key = lost.with_name(f"{lost.name}.recovery-key")
    began = time.monotonic()
    make(lost, count, size)
    made_s = time.monotonic() - began
    shutil.rmtree(lost)
    began = time.monotonic()
    said = run(GRIDFS, "recover", new, "--servers", servers, "--recovery-key-file", key)
    recover_s = time.monotonic() - began
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 // 1_000_000
    found = FOUND.search(said)
    if found is None or int(found[1]) != count:
        raise SystemExit(f"recovery-times: {count} files were made: {said}")
    mountpoint = directory / "mnt"
    mountpoint.mkdir(exist_ok=True)
    began = time.monotonic()
    run(GRIDFS, "mount", new, mountpoint)
    try:
        os.listdir(mountpoint)
        mount_s = time.monotonic() - began
    finally:
        run(GRIDFS, "umount", mountpoint)
    times = f"made {made_s:7.1f} s   recover {recover_s:6.1f} s   rebuild {float(found[3]):6.1f} s"
    print(
        f"{count:>9} files: {times}   read {int(found[2]):>11} bytes   peak {peak_mb:>4} MB"
        f"   first mount {mount_s:5.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/recovery-times", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--counts", default="1000,100000")
    parser.add_argument("--bytes", type=int, default=100)
    chosen = parser.parse_args()
    if chosen.directory.exists():
        parser.error(f"{chosen.directory} exists already")
    directory = chosen.directory.resolve()
    try:
        directory.mkdir(parents=True)
        run(SCRIPTS / "local-grid", "up", directory / "grid")
        for count in map(int, chosen.counts.split(",")):
            measure(directory, count, chosen.bytes)
    finally:
        run(SCRIPTS / "local-grid", "down", directory / "grid")
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
