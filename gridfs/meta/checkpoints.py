"""Checkpoints of the metadata: the ranges of rows that changed, read from a snapshot; a database made of one.

A `Snapshot` is a second connection with a transaction of its own, so that it may be read in a worker thread
while the file system goes on; where there can be none (simulation) everything is read at once. Table `taken`
holds the ranges of the checkpoint under way, `kept` where the parts of the newest finished one lie: a crash
in between leaves both as they are, and the next checkpoint does it all again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apsw

from gridfs.meta import schema
from gridfs.meta.operations import KIND_DATA, PackRecord
from gridfs.meta.packs import Packs, as_record
from gridfs.meta.ranges import ROOT_VERSION, KeptPart, PartPlace, Root, Row, decode_part, encode_parts
from gridfs.meta.rows import Sealer
from gridfs.meta.schema import BUCKET_BITS, FAMILIES, Table

SPARSE = 4
"""A checkpoint pack of which less than one part in so many is still in use is given up."""

Range = tuple[int, int]
"""Family and bucket."""


class Snapshot:
    """The metadata as they were committed last when it was made."""

    def __init__(self, database: apsw.Connection, sealer: Sealer, *, shared: bool) -> None:
        """`shared`: others change the database on this connection; only then everything is read at once."""
        self._database = database
        self._sealer = sealer
        self._shared = shared
        if not shared:
            database.execute("BEGIN")
        self._state = schema.State()
        schema.load(database, self._state)
        self._packs = Packs(database, self._state, sealer)
        self._packs.forget()
        self.number = self._state.applied
        self._counters = schema.get_state(database)
        self._kept = [KeptPart(*row) for row in database.execute("SELECT * FROM kept ORDER BY 1, 2, 3")]
        self.ranges = [(family, bucket) for family, bucket in database.execute(_RANGES, (SPARSE,))]
        """Ranges to be written anew, ascending."""
        self._parts = self._read()
        self._records: dict[bytes, PackRecord] = {}
        if shared:
            self._parts = iter(list(self._parts))
            changed = set(self.ranges)
            for kept in self._kept:
                if kept[:2] not in changed:
                    self._record(kept.pack)

    def close(self) -> None:
        if not self._shared:
            self._database.close()

    def next_parts(self, limit_bytes: int) -> list[tuple[Range, int, bytes]]:
        """The next parts, about `limit_bytes` of them: (range, number of the part in it, its bytes).

        Empty at the end. For a worker thread; raises Corrupt, Unavailable.
        """
        result: list[tuple[Range, int, bytes]] = []
        size = 0
        try:
            for part in self._parts:
                result.append(part)
                size += len(part[2])
                if size >= limit_bytes:
                    break
        except apsw.Error as error:
            raise schema.failure(error) from error
        return result

    def root(self, written: Sequence[tuple[KeptPart, PackRecord]]) -> Root:
        """The root of this checkpoint: what was written now, and what stays of the one before."""
        changed = set(self.ranges)
        parts = [(kept, self._record(kept.pack)) for kept in self._kept if kept[:2] not in changed]
        parts = sorted([*parts, *written])
        packs: dict[bytes, tuple[int, PackRecord]] = {}
        for kept, record in parts:
            packs.setdefault(kept.pack, (len(packs), record))
        return Root(
            version=ROOT_VERSION,
            number=self.number,
            state=self._counters,
            servers=self._packs.servers(),
            packs=[record for _, record in packs.values()],
            parts=[PartPlace(*kept[:3], packs[kept.pack][0], *kept[4:]) for kept, _ in parts],
        )

    def _record(self, pack_id: bytes) -> PackRecord:
        known = self._records.get(pack_id)
        if known is None:
            ref = self._packs.find_pack(pack_id)
            assert ref is not None
            known = self._records[pack_id] = as_record(self._packs.pack(ref))
        return known

    def _read(self) -> Iterator[tuple[Range, int, bytes]]:
        for family, bucket in self.ranges:
            tables = ((index, self._rows(table, bucket)) for index, table in enumerate(FAMILIES[family]))
            for number, part in enumerate(encode_parts(tables)):
                yield (family, bucket), number, part

    def _rows(self, table: Table, bucket: int) -> Iterator[Row]:
        rows: Iterable[Any] = self._database.execute(
            f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {table.key} >= ? AND {table.key} < ?"  # noqa: S608
            f" ORDER BY {table.key}",
            (bucket << BUCKET_BITS, (bucket + 1) << BUCKET_BITS),
        )
        if table.name != "pack":
            yield from rows
            return
        sealed = table.columns.index("sealed_key")
        for row in rows:
            yield *row[:sealed], self._sealer.open(row[sealed]), *row[sealed + 1 :]


# Besides what changed: what lies in packs that another client has given up, or that are hardly used.
_RANGES = (
    "SELECT family, bucket FROM taken UNION"
    " SELECT family, bucket FROM kept LEFT JOIN pack p ON p.pack_id = pack"
    " WHERE p.ref IS NULL OR p.ref IN (SELECT pack FROM garbage) UNION"
    " SELECT family, bucket FROM kept WHERE pack IN"
    " (SELECT k.pack FROM kept k JOIN pack p ON p.pack_id = k.pack"
    " WHERE NOT EXISTS (SELECT 1 FROM taken t WHERE t.family = k.family AND t.bucket = k.bucket)"
    " GROUP BY k.pack HAVING sum(k.run_length) * ? < max(p.stream_length)) ORDER BY 1, 2"
)


class Checkpoints:
    """Tables `touched`, `taken` and `kept`."""

    def __init__(self, database: apsw.Connection) -> None:
        self._database = database

    def take(self) -> None:
        """A checkpoint begins: what was touched until now is its business."""
        self._database.execute("INSERT OR IGNORE INTO taken SELECT family, bucket FROM touched")
        self._database.execute("DELETE FROM touched")

    def finish(self, ranges: Sequence[Range], parts: Sequence[KeptPart]) -> None:
        """It is stored: `ranges` were written anew, as `parts`."""
        self._database.execute("DELETE FROM taken")
        self._database.executemany("DELETE FROM kept WHERE family = ? AND bucket = ?", ranges)
        self._database.executemany("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?)", parts)

    def superseded(self, in_use: Sequence[bytes]) -> list[bytes]:
        """Ids of journal and checkpoint packs that neither the newest checkpoint nor `in_use` names."""
        rows = self._database.execute(
            "SELECT pack_id FROM pack WHERE kind != ? AND ref NOT IN (SELECT pack FROM garbage)"
            " AND pack_id NOT IN (SELECT pack FROM kept) ORDER BY ref",
            (KIND_DATA,),
        )
        used = set(in_use)
        return [pack_id for row in rows if (pack_id := bytes(row[0])) not in used]


class Loader:
    """Makes a database from a checkpoint. Nothing may be at its path; `finish` makes it a whole one."""

    def __init__(self, path: str, vfs: str | None, sealer: Sealer, root: Root) -> None:
        self._sealer = sealer
        self._root = root
        self._database = schema.create(path, vfs)
        with self._database:
            schema.make_bare_tables(self._database)
            self._database.executemany("INSERT INTO server VALUES (?, ?)", root.servers)

    def add(self, family: int, part: bytes | bytearray | memoryview) -> None:
        """Put in the rows of one part. For a worker thread. Raises Corrupt, Exhausted, Unavailable."""
        try:
            with self._database:
                for index, rows in decode_part(part, family):
                    table = FAMILIES[family][index]
                    if table.name == "pack":
                        rows = self._sealed(table, rows)
                    marks = ", ".join("?" * len(table.columns))
                    self._database.executemany(
                        f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({marks})",  # noqa: S608
                        rows,
                    )
        except apsw.Error as error:
            raise schema.failure(error) from error

    def finish(self) -> None:
        """Everything is in: make the format's marks, and all of it durable. For a worker thread."""
        try:
            with self._database:
                Checkpoints(self._database).finish([], self._root.kept())
                schema.finish_tables(self._database, self._root.state)
            schema.checkpoint(self._database)
            self._database.close()
        except apsw.Error as error:
            raise schema.failure(error) from error

    def give_up(self) -> None:
        """Leave what is there unfinished, whatever became of the disk."""
        self._database.close(True)

    def _sealed(self, table: Table, rows: Sequence[Row]) -> list[Row]:
        at = table.columns.index("sealed_key")
        return [(*row[:at], self._sealer.seal(row[at]), *row[at + 1 :]) for row in rows]
