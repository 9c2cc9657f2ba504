"""Other servers come to keep the head log, of a mounted file system."""

from __future__ import annotations

from gridfs.exits import FAILED, GRID_UNREACHABLE
from tests.mount.conftest import MakeFileSystem
from tests.mount.support import content
from tests.processes import FileSystemShape, LocalGrid, MountedFileSystem

SHAPE = FileSystemShape(k=2, n=3, happy=2)
"""Three head servers, the first ones; a quorum are two."""


def heads_of(mounted: MountedFileSystem) -> tuple[int, list[str]]:
    """(generation, numbers in the servers file)"""
    heads = mounted.status()["heads"]
    assert not heads["leaving"]
    return heads["generation"], [server["name"].split()[1] for server in heads["servers"]]


def test_head_servers_are_replaced_and_the_old_ones_are_not_needed(
    six: LocalGrid, make_file_system: MakeFileSystem
) -> None:
    mounted = make_file_system(shape=SHAPE)
    (mounted.path / "before").write_bytes(content("before", 100_000))
    changes = "--add", "5", "--add", "6", "--remove", "1", "--remove", "2"
    done = mounted.command("heads", mounted.name, *changes)
    assert "list 2, quorum 2 of 3" in done.stdout
    assert heads_of(mounted) == (2, ["3", "5", "6"])
    for number in (0, 1):
        six.kill(number)
    (mounted.path / "after").write_bytes(content("after", 100_000))
    mounted.sync()
    mounted.remount()
    assert heads_of(mounted) == (2, ["3", "5", "6"])
    for name in ("before", "after"):
        assert (mounted.path / name).read_bytes() == content(name, 100_000)

    changes = "--add", "1", "--add", "2", "--remove", "3", "--remove", "5"
    failed = mounted.command("heads", mounted.path, *changes, good=(GRID_UNREACHABLE,))
    message = "gridfs: nothing was changed: changing the head servers: 1 of the 2 servers needed"
    assert failed.stderr.startswith(message)
    assert heads_of(mounted) == (2, ["3", "5", "6"])

    for options, reason in (
        (("--add", "3"), "keeps the head log already"),
        (("--add", "4", "--add", "4"), "keeps the head log already"),
        (("--remove", "4"), "does not keep the head log"),
        (("--add", "7"), "7: name a server by its number in the servers file (1 to 6), or by at least 6"),
        (("--remove", "3", "--remove", "5"), "1 head servers are too few: a quorum takes 2"),
    ):
        refused = mounted.command("heads", mounted.name, *options, good=(FAILED,))
        assert reason in refused.stderr
        assert len(refused.stderr.splitlines()) == 1

    mounted.umount()
    unmounted = mounted.command("heads", mounted.name, good=(FAILED,))
    assert "does not answer" in unmounted.stderr
