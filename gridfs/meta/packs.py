"""The packs of a file system: where their shares lie, their sealed keys, and their live bytes.

Live bytes count every reference of an extent, so a run may belong to several extents and files. A
data pack whose live bytes reach 0 becomes garbage: it stays here, known and marked, until a later
release; a Commit that refers to it again takes it back. Journal and checkpoint packs have no extents:
they become garbage when they are retired.

Thousands of files that go may have lain in a few packs: live bytes are counted in memory, and written
together before a commit. Whoever reads the table itself calls `flush` first; `forget` after a rollback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apsw
import msgspec
from blake3 import blake3

from gridfs.meta.operations import KIND_DATA, PackRecord
from gridfs.meta.rows import Garbage, Pack, Sealer
from gridfs.meta.schema import State
from storage.errors import Corrupt, Missing

CACHED_PACKS_MAX = 4096
COUNTED_MAX = 4096
"""Packs whose live bytes a transaction changes before they are written."""

_numbers = msgspec.msgpack.Decoder(list[int])
_places = msgspec.msgpack.Decoder(list[int | None])
_encode = msgspec.msgpack.Encoder().encode


def key_hash(key: bytes) -> bytes:
    """What a convergent key is looked up by: a hash (32 bytes) that does not tell the key."""
    return blake3(key, derive_key_context="gridfs 2026 convergent key lookup").digest()


def as_record(pack: Pack) -> PackRecord:
    """A pack as records and checkpoints name it."""
    return PackRecord(
        pack_id=pack.pack_id,
        k=pack.k,
        n=pack.n,
        stream_length=pack.stream_length,
        key=pack.key,
        convergent=pack.convergent,
        places=list(pack.places),
        missing=list(pack.missing),
        kind=pack.kind,
    )


@dataclass(slots=True, eq=False)
class _Counted:
    """A pack whose live bytes changed since they were written last."""

    live: int
    kind: int
    debt: int


class Packs:
    """Tables `pack`, `server` and `garbage`. The cache holds at most CACHED_PACKS_MAX opened packs."""

    def __init__(self, database: apsw.Connection, state: State, sealer: Sealer) -> None:
        self._database = database
        self._state = state
        self._sealer = sealer
        self._cache: dict[int, Pack] = {}
        self._counted: dict[int, _Counted] = {}
        self._server_numbers: dict[bytes, int] = {}
        self._server_ids: dict[int, bytes] = {}
        self.changes = 0
        """Rises with every change of live bytes."""

    def forget(self) -> None:
        """Drop what is cached, after a rollback."""
        self._cache.clear()
        self._counted.clear()
        self._server_ids = {
            number: bytes(server_id)
            for number, server_id in self._database.execute("SELECT number, id FROM server")
        }
        self._server_numbers = {server_id: number for number, server_id in self._server_ids.items()}

    def pack(self, ref: int) -> Pack:
        """Raises Missing."""
        pack = self._cache.pop(ref, None)
        if pack is None:
            pack = self._read(ref)
            if len(self._cache) >= CACHED_PACKS_MAX:
                del self._cache[next(iter(self._cache))]
        self._cache[ref] = pack
        return pack

    def servers(self) -> list[tuple[int, bytes]]:
        """Numbers and ids of all servers that places name."""
        return sorted(self._server_ids.items())

    def find_pack(self, pack_id: bytes) -> int | None:
        ref = self._database.execute("SELECT ref FROM pack WHERE pack_id = ?", (pack_id,)).get
        return None if ref is None else int(ref)

    def find_convergent(self, hashed_key: bytes) -> int | None:
        ref = self._database.execute(
            "SELECT ref FROM pack WHERE key_hash = ? ORDER BY ref DESC LIMIT 1", (hashed_key,)
        ).get
        return None if ref is None else int(ref)

    def garbage(self, limit: int) -> list[Garbage]:
        rows = self._database.execute(
            "SELECT g.pack, p.pack_id, g.since FROM garbage g JOIN pack p ON p.ref = g.pack"
            " ORDER BY g.since, g.pack LIMIT ?",
            (limit,),
        )
        return [Garbage(ref, bytes(pack_id), since) for ref, pack_id, since in rows]

    def owing(self, after: int, up_to: int) -> list[int]:
        """References above `after`, up to `up_to`, of packs in use that lack shares; ascending."""
        rows = self._database.execute(
            "SELECT ref FROM pack WHERE ref > ? AND ref <= ? AND debt > 0"
            " AND NOT EXISTS (SELECT 1 FROM garbage WHERE pack = ref) ORDER BY ref",
            (after, up_to),
        )
        return [ref for (ref,) in rows]

    def fits(self, record: PackRecord) -> int | None:
        """The reference of a known pack, None for a new one. Raises Corrupt if it contradicts itself
        or what is known of it."""
        if not 1 <= record.k <= record.n <= 256 or record.stream_length < 1:
            raise Corrupt(f"pack {record.pack_id.hex()}: {record.k} of {record.n} is no geometry")
        if len(record.pack_id) != 32 or len(record.key) != 32 or len(record.places) != record.n:
            raise Corrupt(f"pack {record.pack_id.hex()}: id, key or places have a wrong length")
        if any(not 0 <= number < record.n for number in record.missing):
            raise Corrupt(f"pack {record.pack_id.hex()}: a missing share that it does not have")
        ref = self.find_pack(record.pack_id)
        if ref is not None:
            known = self.pack(ref)
            if (known.k, known.n, known.stream_length, known.key, known.convergent, known.kind) != (
                record.k, record.n, record.stream_length, record.key, record.convergent, record.kind,
            ):  # fmt: skip
                raise Corrupt(f"pack {record.pack_id.hex()} is known with another geometry or key")
        return ref

    def put(self, record: PackRecord, ref: int | None) -> int:
        """Keep a record that `fits`; of a known pack the places and missing shares become the new ones."""
        places = _encode([self._server(place) for place in record.places])
        missing = sorted(set(record.missing))
        if ref is not None:
            self.flush()
            debt, garbage = self._standing(ref)
            self._database.execute(
                "UPDATE pack SET places = ?, missing = ?, debt = ? WHERE ref = ?",
                (places, _encode(missing), len(missing), ref),
            )
            if not garbage:
                self._state.missing_shares += len(missing) - debt
            self._cache.pop(ref, None)
            return ref
        ref = self._state.next_pack
        self._state.next_pack += 1
        self._database.execute(
            "INSERT INTO pack (ref, pack_id, kind, k, n, stream_length, sealed_key, key_hash, places,"
            " missing, debt, live) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (
                ref, record.pack_id, record.kind, record.k, record.n, record.stream_length,
                self._sealer.seal(record.key), key_hash(record.key) if record.convergent else None,
                places, _encode(missing), len(missing),
            ),
        )  # fmt: skip
        self._state.packs += 1
        self._state.missing_shares += len(missing)
        return ref

    def retire(self, pack_ids: Sequence[bytes], number: int) -> None:
        """Journal and checkpoint packs are needed no more. Raises Corrupt for one that is not such a pack."""
        refs = []
        for pack_id in pack_ids:
            row = self._database.execute(
                "SELECT ref, kind, debt FROM pack WHERE pack_id = ?", (pack_id,)
            ).fetchone()
            if row is None or row[1] == KIND_DATA:
                raise Corrupt(f"pack {pack_id.hex()} is retired, and is no journal or checkpoint")
            refs.append(row)
        for ref, _, debt in refs:
            self._bury(ref, debt, number)

    def add_live(self, changes: Mapping[int, int], number: int) -> None:
        """Add to the live bytes of packs (0 makes sure that a pack without any is garbage).

        `number`: the operation at which a pack that dies now died.
        """
        for ref, change in changes.items():
            counted = self._counted.get(ref) or self._count(ref)
            before, live = counted.live, counted.live + change
            if live < 0:
                raise Corrupt(f"pack {ref} would have {live} live bytes")
            if change:
                self.changes += 1
                counted.live = live
                self._cache.pop(ref, None)
                self._state.live_bytes += change
            if counted.kind == KIND_DATA and not live:
                self._bury(ref, counted.debt, number)
            elif not before and live:
                self._revive(ref, counted.debt)

    def _count(self, ref: int) -> _Counted:
        row = self._database.execute("SELECT live, kind, debt FROM pack WHERE ref = ?", (ref,)).fetchone()
        if row is None:
            raise Corrupt(f"an extent refers to pack {ref}, which is not there")
        if len(self._counted) >= COUNTED_MAX:
            self.flush()
        counted = self._counted[ref] = _Counted(*row)
        return counted

    def flush(self) -> None:
        """Write live bytes into the open transaction. Where it raises, that has to be rolled back."""
        if not self._counted:
            return
        self._database.executemany(
            "UPDATE pack SET live = ? WHERE ref = ?",
            [(counted.live, ref) for ref, counted in self._counted.items()],
        )
        self._counted.clear()

    def _bury(self, ref: int, debt: int, number: int) -> None:
        self._database.execute("INSERT OR IGNORE INTO garbage VALUES (?, ?)", (ref, number))
        if self._database.changes():
            self._state.packs -= 1
            self._state.missing_shares -= debt

    def _revive(self, ref: int, debt: int) -> None:
        self._database.execute("DELETE FROM garbage WHERE pack = ?", (ref,))
        if self._database.changes():
            self._state.packs += 1
            self._state.missing_shares += debt

    def _standing(self, ref: int) -> tuple[int, bool]:
        row: Any = self._database.execute(
            "SELECT debt, EXISTS (SELECT 1 FROM garbage WHERE pack = ref) FROM pack WHERE ref = ?", (ref,)
        ).fetchone()
        return int(row[0]), bool(row[1])

    def _server(self, server_id: bytes | None) -> int | None:
        if server_id is None:
            return None
        number = self._server_numbers.get(server_id)
        if number is None:
            number = len(self._server_numbers) + 1
            self._database.execute("INSERT INTO server VALUES (?, ?)", (number, server_id))
            self._server_numbers[server_id] = number
            self._server_ids[number] = server_id
        return number

    def _read(self, ref: int) -> Pack:
        if ref in self._counted:
            self.flush()
        row = self._database.execute(
            "SELECT pack_id, k, n, stream_length, sealed_key, key_hash IS NOT NULL, places, missing, kind,"
            " live FROM pack WHERE ref = ?",
            (ref,),
        ).fetchone()
        if row is None:
            raise Missing(f"no pack has the reference {ref}")
        pack_id, k, n, stream_length, sealed_key, convergent, places, missing, kind, live = row
        try:
            ids = tuple(
                None if number is None else self._server_ids[number] for number in _places.decode(places)
            )
            owed = tuple(_numbers.decode(missing))
        except (msgspec.MsgspecError, KeyError) as error:
            raise Corrupt(f"places of pack {ref} cannot be read: {error}") from error
        return Pack(
            bytes(pack_id), k, n, stream_length, self._sealer.open(sealed_key), bool(convergent),
            ids, owed, kind, live,
        )  # fmt: skip
