"""`gridfs heads`: the servers that keep the head log, shown and changed. The mount's daemon does it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from gridfs.cli.status import find_home
from gridfs.control import client as control
from gridfs.exits import FAILED, GRID_UNREACHABLE, CommandError


def change_heads(name: str, add: Sequence[str], remove: Sequence[str]) -> None:
    """Add and remove head servers, and print who they are. Raises CommandError."""
    home = find_home(name)
    if add or remove:
        answers = list(control.ask(home, "heads", timeout_s=None, add=list(add), remove=list(remove)))
        answer = answers[-1] if answers else {"error": "the mount daemon ended"}
        if "error" in answer:
            raise CommandError(answer["error"], GRID_UNREACHABLE if answer.get("unreachable") else FAILED)
    values = control.status(home)
    console = Console(highlight=False, soft_wrap=True)
    table = Table("head server", "state", box=None, pad_edge=False)
    heads = values["heads"]
    for server in heads["servers"]:
        table.add_row(server["name"], server["state"])
    console.print(f"list {heads['generation']}, quorum {heads['quorum']} of {len(heads['servers'])}")
    if heads["leaving"]:
        console.print("the list is changing: a quorum of the one before is needed as well until that is done")
    console.print(table, markup=False)
