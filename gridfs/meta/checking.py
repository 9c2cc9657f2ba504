"""A full check of the metadata's invariants (SPEC.md numbers them), for tests and for repair."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import apsw

from gridfs.meta.operations import MAX_INTEGER
from gridfs.meta.schema import BUCKET_BITS, FAMILIES, State

# 16384, 32768 and 40960 are S_IFDIR, S_IFREG and S_IFLNK under S_IFMT; inode 1 is the root.
# Each query finds rows that break one invariant; the text says what they mean.
QUERIES = (
    (
        "entry {} of directory {} names no inode or has its type wrong",
        "SELECT e.name, e.parent FROM entry e LEFT JOIN inode i USING (ino)"
        " WHERE i.ino IS NULL OR e.type != i.mode & 61440",
    ),
    (
        "entry {} lies in {}, which is not a linked directory",
        "SELECT e.name, e.parent FROM entry e LEFT JOIN inode p ON p.ino = e.parent"
        " WHERE p.ino IS NULL OR p.mode & 61440 != 16384 OR p.nlink = 0",
    ),
    (
        "inode {} is detached, and not a directory without a name",
        "SELECT d.ino FROM detached d LEFT JOIN inode i USING (ino) WHERE i.ino IS NULL"
        " OR i.mode & 61440 != 16384 OR EXISTS (SELECT 1 FROM entry e WHERE e.ino = d.ino)",
    ),
    (
        "directory {} has two entries at cookie {}",
        "SELECT parent, cookie FROM entry GROUP BY parent, cookie HAVING count(*) > 1",
    ),
    (
        "file {} counts {} links",
        "SELECT ino, nlink FROM inode i WHERE mode & 61440 != 16384"
        " AND nlink != (SELECT count(*) FROM entry e WHERE e.ino = i.ino)",
    ),
    (
        "directory {} counts {} links",
        "SELECT ino, nlink FROM inode i WHERE mode & 61440 = 16384 AND nlink != CASE"
        " WHEN ino = 1 OR ino IN (SELECT ino FROM detached)"
        " OR EXISTS (SELECT 1 FROM entry e WHERE e.ino = i.ino) THEN 2 +"
        " (SELECT count(*) FROM entry e WHERE e.parent = i.ino AND e.type = 16384) ELSE 0 END",
    ),
    (
        "directory {} does not lie in {}, its parent",
        "SELECT ino, parent FROM inode i WHERE mode & 61440 = 16384 AND nlink > 0"
        " AND ino != 1 AND ino NOT IN (SELECT ino FROM detached)"
        " AND (SELECT count(*) FROM entry e WHERE e.ino = i.ino AND e.parent = i.parent"
        ") != 1",
    ),
    (
        "inode {} has a body, target or parent that its type has not",
        "SELECT ino FROM inode WHERE (body IS NOT NULL AND mode & 61440 != 32768)"
        " OR (target IS NOT NULL) != (mode & 61440 = 40960)"
        " OR (parent IS NOT NULL) != (mode & 61440 = 16384)",
    ),
    (
        "inode {} holds {} bytes by its row",
        # What a copy holds is its own and what its base still holds.
        "WITH RECURSIVE part(body, at) AS (SELECT body, body FROM inode WHERE body IS NOT NULL"
        " UNION ALL SELECT part.body, base FROM part JOIN copy ON copy.body = at)"
        " SELECT ino, held FROM inode LEFT JOIN (SELECT part.body AS body, sum(length) AS bytes"
        " FROM part JOIN extent e ON e.body = at GROUP BY part.body) USING (body)"
        " WHERE held != coalesce(bytes, 0)",
    ),
    (
        "body {} belongs to nobody and is not being cleared",
        "SELECT DISTINCT body FROM extent e WHERE NOT EXISTS (SELECT 1 FROM inode i WHERE i.body = e.body)"
        " AND NOT EXISTS (SELECT 1 FROM cut c WHERE c.body = e.body AND c.ino = 0)"
        " AND NOT EXISTS (SELECT 1 FROM copy c WHERE c.base = e.body)",
    ),
    (
        "body {} is a copy, and not the one of inode {}",
        "SELECT c.body, c.ino FROM copy c WHERE c.ino != coalesce((SELECT ino FROM inode i"
        " WHERE i.body = c.body), 0)",
    ),
    (
        "body {} is a base and belongs to an inode",
        "SELECT base FROM copy c JOIN inode i ON i.body = c.base",
    ),
    (
        "an extent of body {} at {} reaches past the end of its file",
        "SELECT e.body, e.start FROM inode i JOIN extent e USING (body) WHERE e.start + e.length > i.size"
        " AND NOT EXISTS (SELECT 1 FROM cut c WHERE c.body = e.body AND e.start >= c.position"
        " AND e.frozen < c.number)",
    ),
    (
        "extents of body {} overlap at {}",
        "SELECT body, start FROM (SELECT body, start, lag(start + length) OVER"
        " (PARTITION BY body ORDER BY start) AS before FROM extent) WHERE before > start",
    ),
    (
        "an extent of body {} at {} does not lie in its run",
        "SELECT body, start FROM extent WHERE length < 1 OR skip < 0 OR skip + length > run_length",
    ),
    (
        "pack {} has {} live bytes by its row",
        "SELECT ref, live FROM pack p"
        " LEFT JOIN (SELECT pack, sum(length) AS bytes FROM extent GROUP BY pack) e"
        " ON e.pack = p.ref WHERE live != coalesce(bytes, 0)",
    ),
    ("an extent names pack {}", "SELECT DISTINCT pack FROM extent WHERE pack NOT IN (SELECT ref FROM pack)"),
    (
        "pack {} is wrongly in or out of the garbage",
        "SELECT ref FROM pack WHERE kind = 0 AND (live = 0) != (ref IN (SELECT pack FROM garbage))",
    ),
    ("xattr of inode {}", "SELECT DISTINCT ino FROM xattr WHERE ino NOT IN (SELECT ino FROM inode)"),
)

TOTALS = (
    ("files", "SELECT count(*) FROM inode WHERE mode & 61440 != 16384"),
    ("directories", "SELECT count(*) FROM inode WHERE mode & 61440 = 16384"),
    ("packs", "SELECT count(*) FROM pack WHERE ref NOT IN (SELECT pack FROM garbage)"),
    ("live_bytes", "SELECT coalesce(sum(live), 0) FROM pack"),
    ("missing_shares", "SELECT coalesce(sum(debt), 0) FROM pack WHERE ref NOT IN (SELECT pack FROM garbage)"),
)

COUNTERS = (
    ("next_inode", "SELECT max(ino) FROM inode"),
    ("next_cookie", "SELECT max(cookie) FROM entry"),
    ("next_body", "SELECT max(body) FROM inode"),
    ("next_pack", "SELECT max(ref) FROM pack"),
)


def find_problems(database: apsw.Connection, state: State) -> list[str]:
    """One line for each thing that is wrong, the engine's own integrity check included."""
    return list(chain(_engine(database), _rows(database), _counts(database, state)))


def _engine(database: apsw.Connection) -> Iterator[str]:
    for (text,) in database.execute("PRAGMA integrity_check").fetchall():
        if text != "ok":
            yield f"database: {text}"


def _rows(database: apsw.Connection) -> Iterator[str]:
    for text, query in chain(QUERIES, _ranges()):
        for row in database.execute(query).fetchall():
            yield text.format(*row)


def _ranges() -> Iterator[tuple[str, str]]:
    """What a checkpoint would miss: rows in ranges that were neither touched nor kept."""
    for family, tables in enumerate(FAMILIES):
        for table in tables:
            yield (
                f"rows of {table.name} in range {{}} are in no checkpoint",
                f"SELECT DISTINCT {table.key} >> {BUCKET_BITS} FROM {table.name} t WHERE NOT EXISTS"  # noqa: S608
                " (SELECT 1 FROM (SELECT family, bucket FROM touched UNION SELECT family, bucket FROM taken"
                " UNION SELECT family, bucket FROM kept)"
                f" WHERE family = {family} AND bucket = t.{table.key} >> {BUCKET_BITS})",
            )


def _counts(database: apsw.Connection, state: State) -> Iterator[str]:
    for name, query in TOTALS:
        counted = database.execute(query).get
        if counted != getattr(state, name):
            yield f"{name} are {counted}, not {getattr(state, name)}"
    # In two halves, for the sum may be larger than an integer of SQLite's.
    halves = "SELECT sum(size >> 31), sum(size & 2147483647) FROM inode WHERE mode & 61440 = 32768"
    for high, low in database.execute(halves):
        counted = ((high or 0) * (1 << 31) + (low or 0)) & MAX_INTEGER
        if counted != state.bytes:
            yield f"bytes are {counted}, not {state.bytes}"
    for name, query in COUNTERS:
        highest = database.execute(query).get or 0
        if highest >= getattr(state, name):
            yield f"{name} is {getattr(state, name)}, but {highest} is in use"
