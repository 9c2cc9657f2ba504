"""Rules that hold at every moment of a run, looked after from the side while it goes on.

- durable: what servers acknowledged is on their disks, so that a loss of power right now would leave it; a
  record that counts as stored is on W of them.
- nonces: no key and nonce ever seal two things, on any machine of the run.

What is found is kept in `found`: raised inside of the code under test it might be taken for an error of its
own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gridfs.codec import cipher
from gridfs.codec import pack as packs
from gridfs.codec.pack import SealedPack
from gridfs.files import spool
from gridfs.grid.heads import HeadServers
from gridfs.grid.uploader import Receipt, Uploader
from gridfs.meta import records
from storage.format.head import HeadRecord
from tests.simulation.chaos.faults import Injector
from tests.simulation.chaos.history import Violation
from tests.simulation.chaos.plan import Plan
from tests.simulation.filesystem import Servers
from tests.simulation.platter import Directory, Inode
from tests.simulation.test_grid import DIRECTORY

Bytes = bytes | bytearray | memoryview
HEADS = f"{DIRECTORY}/heads/heads"
SHARES = f"{DIRECTORY}/shares/shares"
VOLUMES = f"{DIRECTORY}/shares/volumes"


class Checkers:
    """All of them, for one run. `watching` puts them in place."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._sealed: dict[bytes, bytes] = {}
        self.servers: Servers | None = None
        self.injector: Injector | None = None
        self.found: list[Violation] = []
        self.records = 0
        self.packs = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        append, store = HeadServers.append, Uploader.store
        checkers = self

        async def appended(self: HeadServers, record: HeadRecord, *more: Any, **others: Any) -> None:
            await append(self, record, *more, **others)
            checkers.check_record(record)

        async def stored(self: Uploader, pack: SealedPack, *more: Any, **others: Any) -> Receipt:
            receipt = await store(self, pack, *more, **others)
            checkers.check_pack(pack, receipt)
            return receipt

        with contextlib.ExitStack() as stack:
            for module in (cipher, packs, spool, records):
                stack.enter_context(mock.patch.object(module, "AESGCM", self._cipher))
            stack.enter_context(mock.patch.object(HeadServers, "append", appended))
            stack.enter_context(mock.patch.object(Uploader, "store", stored))
            cipher.run_cipher.cache_clear()
            stack.callback(cipher.run_cipher.cache_clear)
            yield

    def require_none(self) -> None:
        """Raise what was found."""
        if self.found:
            raise self.found[0]

    # ---- durable

    def check_record(self, record: HeadRecord) -> None:
        """The record was acknowledged by enough head servers."""
        assert self.servers is not None
        assert self.injector is not None
        self.records += 1
        holders = 0
        for node in self.servers.nodes:
            file = durable_file(node.platter.root, HEADS)
            there = file is not None and file.durable.rfind(record.payload) >= 0
            # One that was set back in this very moment had it.
            holders += there or node.name in self.injector.set_back
        if holders < self._plan.shape.quorum:
            text = (
                f"record {record.stamp} is on the disks of {holders} servers, not {self._plan.shape.quorum}"
            )
            self.found.append(Violation("durable", text))

    def check_pack(self, pack: SealedPack, receipt: Receipt) -> None:
        """The pack was acknowledged as stored at these places."""
        assert self.servers is not None
        assert self.injector is not None
        self.packs += 1
        damaged = self.injector.damaged
        for server, node in zip(self.servers.roster, self.servers.nodes, strict=True):
            if node.name in damaged:
                continue
            for number, place in enumerate(receipt.places):
                if place == server.server_id and not _has_share(node.platter.root, pack, number):
                    text = f"share {number} of {pack.pack_id.hex()[:10]} is not on the disk of {node.name}"
                    self.found.append(Violation("durable", text))

    # ---- nonces

    def _cipher(self, key: Bytes) -> _Watched:
        return _Watched(AESGCM(key), blake3(key).digest(length=12), self)

    def sealed(self, key: bytes, nonce: Bytes, data: Bytes, aad: Bytes | None) -> None:
        """This was sealed."""
        content = blake3(data).update(aad or b"").digest(length=16)
        if self._sealed.setdefault(key + bytes(nonce), content) != content:
            text = f"one key and nonce ({bytes(nonce).hex()}) sealed two different things"
            self.found.append(Violation("nonces", text))


class _Watched:
    """An AESGCM that tells what it seals."""

    __slots__ = ("_checkers", "_key", "_real", "decrypt", "decrypt_into")

    def __init__(self, real: AESGCM, key: bytes, checkers: Checkers) -> None:
        self._real, self._key, self._checkers = real, key, checkers
        self.decrypt = real.decrypt
        self.decrypt_into = real.decrypt_into

    def encrypt(self, nonce: Bytes, data: Bytes, aad: Bytes | None) -> bytes:
        self._checkers.sealed(self._key, nonce, data, aad)
        return self._real.encrypt(nonce, data, aad)

    def encrypt_into(self, nonce: Bytes, data: Bytes, aad: Bytes | None, out: Bytes) -> int:
        self._checkers.sealed(self._key, nonce, data, aad)
        return self._real.encrypt_into(nonce, data, aad, out)  # type: ignore[arg-type]


def durable_file(root: Directory, path: str) -> Inode | None:
    """The file at a path as it would be after a loss of power."""
    entry = _durable_entry(root, path)
    return entry if isinstance(entry, Inode) else None


def _durable_entry(root: Directory, path: str) -> Inode | Directory | None:
    entry: Inode | Directory | None = root
    for name in path.strip("/").split("/"):
        if not isinstance(entry, Directory):
            return None
        entry = entry.durable.get(name)
    return entry


def _has_share(root: Directory, pack: SealedPack, number: int) -> bool:
    content = b"".join(pack.shares[number])
    digits = pack.pack_id.hex()
    path = f"{SHARES}/{digits[0]}/{digits[1:3]}/{digits}.{number}"
    file = durable_file(root, path)
    if file is not None and file.durable == content:
        return True
    volumes = _durable_entry(root, VOLUMES)
    if not isinstance(volumes, Directory):
        return False
    return any(
        isinstance(volume, Inode) and volume.durable.rfind(content) >= 0
        for _, volume in sorted(volumes.durable.items(), reverse=True)
    )
