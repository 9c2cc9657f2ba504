"""Every FUSE handler ends in time, whatever the grid does: a program that waits for one cannot be killed.

All servers hang and the spool is full, on virtual time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio

from gridfs.assembly import Parts
from gridfs.fuse.handlers import Handlers
from gridfs.meta.rows import ROOT
from storage.errors import Exhausted
from tests.mount.planted import handler_names
from tests.simulation.filesystem import OPTIONS, Client, Shell, start_servers
from tests.simulation.machine import World, run_world
from tests.simulation.runner import chance

GRID_TIMEOUT_S = 8.0
FILE = stat.S_IFREG | 0o644


@dataclasses.dataclass(frozen=True)
class Case:
    """A handler's call: `call(handlers, case)` with what `Stage` has."""

    call: Callable[[Handlers, Any], Any]
    error: int = 0
    """The errno it ends with; 0 for none."""


CONTEXT: Any = SimpleNamespace(uid=0, gid=0, pid=os.getpid(), umask=0o22)


def attributes(**values: int) -> tuple[Any, Any]:
    """(attr, fields) of a SETATTR of these."""
    fields = ("mode", "uid", "gid", "atime", "mtime", "ctime", "size")
    named = {f"st_{name}{'_ns' if name.endswith('time') else ''}": value for name, value in values.items()}
    return SimpleNamespace(**named), SimpleNamespace(**{f"update_{name}": name in values for name in fields})


CASES: dict[str, Case] = {
    "lookup": Case(lambda h, s: h.lookup(ROOT, b"stored", CONTEXT)),
    "getattr": Case(lambda h, s: h.getattr(s.stored, CONTEXT)),
    "setattr": Case(lambda h, s: h.setattr(s.stored, *attributes(size=10), None, CONTEXT)),
    "forget": Case(lambda h, s: h.forget([(s.stored, 1)])),
    "readlink": Case(lambda h, s: h.readlink(s.link, CONTEXT)),
    "statfs": Case(lambda h, s: h.statfs(CONTEXT)),
    "mknod": Case(lambda h, s: h.mknod(ROOT, b"a", FILE, 0, CONTEXT), errno.ENOSPC),
    "mkdir": Case(lambda h, s: h.mkdir(ROOT, b"b", 0o755, CONTEXT), errno.ENOSPC),
    "symlink": Case(lambda h, s: h.symlink(ROOT, b"c", b"stored", CONTEXT), errno.ENOSPC),
    "create": Case(lambda h, s: h.create(ROOT, b"d", 0o644, os.O_WRONLY, CONTEXT), errno.ENOSPC),
    "link": Case(lambda h, s: h.link(s.stored, ROOT, b"e", CONTEXT)),
    "rename": Case(lambda h, s: h.rename(ROOT, b"e", ROOT, b"f", 0, CONTEXT)),
    "unlink": Case(lambda h, s: h.unlink(ROOT, b"f", CONTEXT)),
    "rmdir": Case(lambda h, s: h.rmdir(ROOT, b"empty", CONTEXT)),
    "opendir": Case(lambda h, s: h.opendir(ROOT, CONTEXT)),
    "readdir": Case(lambda h, s: h.readdir(s.folder_handle, 0, None)),
    "fsyncdir": Case(lambda h, s: h.fsyncdir(s.folder_handle, False), errno.EIO),
    "releasedir": Case(lambda h, s: h.releasedir(s.folder_handle)),
    "open": Case(lambda h, s: h.open(s.stored, os.O_WRONLY, CONTEXT), errno.ENOSPC),
    "read": Case(lambda h, s: h.read(s.handle, 0, 1000), errno.EIO),
    "write": Case(lambda h, s: h.write(s.handle, 0, bytes(1 << 20)), errno.ENOSPC),
    "flush": Case(lambda h, s: h.flush(s.handle)),
    "fsync": Case(lambda h, s: h.fsync(s.handle, False), errno.EIO),
    "release": Case(lambda h, s: h.release(s.handle)),
    "getxattr": Case(lambda h, s: h.getxattr(s.stored, b"user.a", CONTEXT)),
    "listxattr": Case(lambda h, s: h.listxattr(s.stored, CONTEXT)),
    "setxattr": Case(lambda h, s: h.setxattr(s.stored, b"user.b", b"value", CONTEXT)),
    "removexattr": Case(lambda h, s: h.removexattr(s.stored, b"user.a", CONTEXT)),
}
"""In an order in which each finds what it needs."""


def test_every_handler_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(CASES) == sorted(handler_names())
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *_: True)
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda *_, **__: None)

    async def scenario(world: World) -> None:
        client = Client(world, await start_servers(world))
        client.create()
        data = chance(0, "stored").randbytes(200_000)

        async def before(parts: Parts) -> None:
            await Shell(parts).write("stored", data)
            await Shell(parts).files.drain()

        async def work(parts: Parts) -> None:
            handlers = Handlers(parts.files, 60.0)
            shell = Shell(parts)
            names = parts.files.namespace
            shell.mkdir("empty")
            stored = shell.find("stored")
            assert stored is not None
            names.set_xattr(stored, b"user.a", b"value")
            stage = SimpleNamespace(
                stored=stored,
                link=names.make(ROOT, b"link", stat.S_IFLNK | 0o777, 0, 0, 0, b"stored").ino,
                folder_handle=parts.files.open_directory(ROOT),
                handle=(await handlers.open(stored, os.O_RDONLY, CONTEXT)).fh,
            )
            for node in list(world.nodes.values()):
                if node is not client.node:
                    world.fabric.partition(node.name, client.node.name)
            await fill_the_spool(parts)
            for name, case in CASES.items():
                begin = trio.current_time()
                code = 0
                with trio.fail_after(GRID_TIMEOUT_S + 1):
                    try:
                        await case.call(handlers, stage)
                    except pyfuse3.FUSEError as error:
                        code = error.errno
                assert code == case.error, (name, os.strerror(code))
                waited = trio.current_time() - begin
                if case.error in (errno.EIO, errno.ENOSPC):
                    assert waited == pytest.approx(GRID_TIMEOUT_S, abs=0.1), name
                else:
                    assert waited == 0, name

        await client.session(before)
        await client.session(work, dataclasses.replace(OPTIONS, grid_timeout_s=GRID_TIMEOUT_S))

    run_world(1, scenario)


async def fill_the_spool(parts: Parts) -> None:
    """Until a write has waited for room in vain."""
    handle = parts.files.open(Shell(parts).create("filler"))
    offset, piece = 0, 1 << 20
    with contextlib.suppress(Exhausted):
        while True:
            offset += await parts.files.write(handle, offset, bytes(piece))
