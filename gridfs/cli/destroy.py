"""`gridfs destroy`: a file system is released on every server, and then forgotten here."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from typing import Any, TypeVar

import trio

from gridfs.assembly import LocalSealer
from gridfs.cli.folders import remove_folder
from gridfs.cli.unlock import unlock
from gridfs.codec.keys import KeyTree
from gridfs.destroying import Released, own, release
from gridfs.exits import FAILED, GRID_UNREACHABLE, USAGE, CommandError, sole
from gridfs.files.headstate import HeadState, load_head_state
from gridfs.grid.roster import Roster, parse_roster
from gridfs.host.home import Home, sync_directory, write_private
from gridfs.meta.store import Metadata
from storage.system import system_machine

T = TypeVar("T")


def destroy_filesystem(name: str, yes_destroy: str) -> None:
    """Destroy, after asking twice; what cannot be reached is named, and the next call goes on there."""
    home = Home.find(name)
    config = home.config()
    roster = parse_roster(home.servers_path.read_text(errors="replace"))
    home.lock()
    try:
        begun = home.destroying_path.exists()
        _confirm(name, home, yes_destroy)
        tree = KeyTree(unlock(home, config).master)
        state = _state(home, tree)
        _run(lambda: own(system_machine(), config, tree, roster, state, begun=begun))
        if not begun:
            write_private(home.destroying_path, b"`gridfs destroy` has begun, and finishes it\n")
            sync_directory(home.folder)
        results = _run(lambda: release(system_machine(), config, tree, roster, state))
        left = {server: result for server, result in results.items() if result.trouble}
        shares = sum(result.shares for result in results.values())
        print(f"{shares} shares are released on {len(results) - len(left)} servers")
        if left:
            raise CommandError(_unfinished(name, roster, left), GRID_UNREACHABLE)
        remove_folder(home.folder)
    finally:
        home.unlock()
    print(f"{home.folder} is destroyed; its recovery key opens nothing any more")


def _confirm(name: str, home: Home, yes_destroy: str) -> None:
    if yes_destroy:
        if yes_destroy != name:
            raise CommandError(f"--yes-destroy names {yes_destroy}, not {name}", USAGE)
        return
    if not sys.stdin.isatty():
        raise CommandError("destroy asks on a terminal; a script gives --yes-destroy NAME", USAGE)
    print(f"{home.folder}: all its files will be gone for ever, here and on all servers.")
    if _asked("Destroy it? (yes/no) ") != "yes":
        raise CommandError("nothing was destroyed", FAILED)
    if _asked("Type its name once more: ") != name:
        raise CommandError("that is another name; nothing was destroyed", FAILED)


def _asked(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError:
        return ""


def _state(home: Home, tree: KeyTree) -> HeadState:
    machine = system_machine()
    sealer = LocalSealer(tree.local_key, machine.entropy)
    with closing(Metadata.open(home.database_path, sealer, vfs=machine.disk.sqlite_vfs)) as metadata:
        return load_head_state(metadata)


def _unfinished(name: str, roster: Roster, left: Mapping[bytes, Released]) -> str:
    reasons = [f"{roster.name(server)}: {result.trouble}" for server, result in left.items()]
    more = f" and {len(reasons) - 4} more" if len(reasons) > 4 else ""
    return (
        f"{len(left)} servers still hold shares ({'; '.join(reasons[:4])}{more}); do it again when they are "
        f"there, or leave their part to them with `gridfs forget {name} --force`"
    )


def _run(work: Callable[[], Awaitable[T]]) -> T:
    async def main() -> Any:
        return await work()

    try:
        return trio.run(main)  # type: ignore[no-any-return]
    except BaseExceptionGroup as group:
        raise sole(group) from None
