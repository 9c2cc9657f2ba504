"""Applying a Commit: packs become known and extents visible, in one step or not at all."""

from __future__ import annotations

import stat

from gridfs.meta.bodies import Bodies
from gridfs.meta.operations import Commit, ExtentRecord
from gridfs.meta.packs import Packs
from gridfs.meta.rows import Extent
from gridfs.meta.tree import Tree
from storage.errors import Corrupt


class Commits:
    """Checks a Commit whole before the first row changes."""

    def __init__(self, packs: Packs, bodies: Bodies, tree: Tree) -> None:
        self._packs = packs
        self._bodies = bodies
        self._tree = tree

    def apply(self, commit: Commit, number: int) -> None:
        """Raises Corrupt."""
        known = [self._packs.fits(record) for record in commit.packs]
        if len({record.pack_id for record in commit.packs}) != len(commit.packs):
            raise Corrupt("a commit names one pack twice")
        by_inode = self._by_inode(commit, number)
        refs = [self._packs.put(record, ref) for record, ref in zip(commit.packs, known, strict=True)]
        # A new pack whose extents were all left out must be found as garbage.
        changes = {ref: 0 for ref, before in zip(refs, known, strict=True) if before is None}
        pieces = {
            ino: [_extent(record, refs[record.pack]) for record in records]
            for ino, records in by_inode.items()
        }
        self._bodies.insert(pieces, changes)
        self._packs.add_live(changes, number)

    def _by_inode(self, commit: Commit, number: int) -> dict[int, list[ExtentRecord]]:
        """The extents of inodes that are there, in their order."""
        sizes: dict[int, int | None] = {}
        result: dict[int, list[ExtentRecord]] = {}
        for record in commit.extents:
            if not 0 <= record.pack < len(commit.packs):
                raise Corrupt(f"an extent of inode {record.ino} names a pack that its commit has not")
            skip_max = record.run_length - record.length
            if record.start < 0 or record.length < 1 or not 0 <= record.skip <= skip_max:
                raise Corrupt(f"an extent of inode {record.ino} does not lie in its run")
            if record.frozen >= number:
                raise Corrupt(f"an extent of inode {record.ino} was frozen after its own commit")
            if record.ino not in sizes:
                sizes[record.ino] = self._size(record.ino)
            size = sizes[record.ino]
            if size is None:
                continue
            if record.start + record.length > size:
                raise Corrupt(f"an extent of inode {record.ino} reaches past its size of {size} bytes")
            result.setdefault(record.ino, []).append(record)
        return result

    def _size(self, ino: int) -> int | None:
        inode = self._tree.inode(ino)
        if inode is None:
            return None
        if not stat.S_ISREG(inode.mode):
            raise Corrupt(f"an extent for inode {ino}, which is not a regular file")
        return inode.size


def _extent(record: ExtentRecord, ref: int) -> Extent:
    return Extent(
        record.start, record.length, ref, record.run, record.run_offset, record.run_length,
        record.skip, record.frozen,
    )  # fmt: skip
