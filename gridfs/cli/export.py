"""`gridfs spool export`: what is only on this machine, as files in a directory."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import trio

from gridfs.cli.unlock import unlock
from gridfs.codec.keys import KeyTree
from gridfs.exits import FAILED, CommandError, sole
from gridfs.exporting import Exported, export_spool
from gridfs.grid.roster import parse_roster
from gridfs.host.home import Home
from storage.system import system_machine


def export(name: str, directory: Path, *, everything: bool) -> None:
    """Export, and say what could be had."""
    logging.getLogger().addHandler(logging.NullHandler())
    home = Home.find(name)
    config = home.config()
    target = Path(os.path.abspath(directory))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CommandError(f"{target} is not an empty directory", FAILED)
    roster = parse_roster(home.servers_path.read_text(errors="replace"))
    home.lock()
    try:
        tree = KeyTree(unlock(home, config).master)

        async def run() -> Exported:
            return await export_spool(
                system_machine(),
                home.database_path,
                home.spool_path,
                tree,
                roster,
                str(target),
                everything=everything,
            )

        try:
            done = trio.run(run)
        except BaseExceptionGroup as group:
            raise sole(group) from None
    finally:
        home.unlock()
    _report(target, done)


def _report(target: Path, done: Exported) -> None:
    if not done.files and not done.incomplete and not done.slots:
        print(f"nothing of content is here that the grid has not; see {target}/manifest.jsonl")
        return
    print(f"{done.files} whole files, {done.bytes} bytes in all, are in {target}; manifest.jsonl tells what")
    if done.incomplete:
        print(
            f"{done.incomplete} files are incomplete, because the grid does not answer: {done.grid_trouble}"
        )
        print("what is here of them is in the folder `incomplete`, the manifest tells what is missing")
    if done.slots:
        print(f"{done.slots} slots of the spool are in the folder `slots`, by inode number")
