"""What a mount has promised, kept outside of it: for each path the contents that it may have.

A path has versions, in the order in which they came to be. Two of them count: the last that was
acknowledged (the file was closed, or the call returned), which survives a killed daemon, and the last that
is in the grid (fsync returned), which survives the loss of the machine. What was begun and not acknowledged
may have happened or not. Contents of whole files are made from a seed, so that only that is kept; those of
files that are written in place are kept as they were after each write, since a kill may leave a mixture.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.mount.support import content

PAGE = 4096


class Broken(AssertionError):
    """A promise was broken; says which."""


@dataclass(frozen=True)
class Recipe:
    """A whole content."""

    seed: str
    size: int

    def bytes(self) -> bytes:
        return content(self.seed, self.size)


Found = bytes | None
"""What a path has; None: it is not there."""


@dataclass(frozen=True)
class Partial:
    """A content on its way: any part of it may be missing, and zeros be in its place."""

    recipe: Recipe
    by_loss: bool = False
    """Only the loss of the machine may leave it: it was closed, and then took a new name."""


Version = Recipe | Partial | bytes | None


def is_version(found: Found, version: Version) -> bool:
    if isinstance(version, Partial):
        return found is None or _is_part(found, version.recipe)
    if isinstance(version, Recipe):
        return found is not None and len(found) == version.size and found == version.bytes()
    return found == version


def _is_part(found: bytes, recipe: Recipe) -> bool:
    if len(found) > recipe.size:
        return False
    whole = recipe.bytes()
    for low in range(0, len(found), PAGE):
        page = found[low : low + PAGE]
        wanted = whole[low : low + len(page)]
        if page != wanted and any(a not in (b, 0) for a, b in zip(page, wanted, strict=True)):
            return False
    return True


def is_mixture(found: Found, versions: Sequence[bytes]) -> bool:
    """Whether each byte is that of some version; zeros may be where one of them ended."""
    if found is None:
        return False
    smallest, largest = min(map(len, versions)), max(map(len, versions))
    if not smallest <= len(found) <= largest:
        return False
    for low in range(0, len(found), PAGE):
        page = found[low : low + PAGE]
        if any(version[low : low + len(page)] == page for version in versions):
            continue
        for at, byte in enumerate(page, low):
            if byte == 0 and at >= smallest:
                continue
            if not any(at < len(version) and version[at] == byte for version in versions):
                return False
    return True


@dataclass
class Account:
    """One path."""

    versions: list[Version] = field(default_factory=lambda: [None])
    """From the one that is in the grid on."""
    kept: int = 0
    """Index of the last that was acknowledged; behind it is what was begun."""
    dropped: int = 0
    """Versions that were before the first."""
    is_in_place: bool = False
    """Written in place: mixtures count too."""

    def in_grid(self, version: int) -> None:
        """That version, counted from the path's first on, is in the grid."""
        gone = max(0, version - self.dropped)
        del self.versions[:gone]
        self.kept -= gone
        self.dropped += gone

    def after_kill(self, found: Found) -> bool:
        """Whether a killed daemon may leave this, which is the newest version then."""
        may_be = [
            each for each in self.versions[self.kept :] if not (isinstance(each, Partial) and each.by_loss)
        ]
        if not self._allows(may_be, found):
            return False
        if self.is_in_place:
            self.versions.append(found)
        elif is_version(found, self.versions[self.kept]):
            del self.versions[self.kept + 1 :]
        else:
            whole = [each for each in self.versions[self.kept :] if not isinstance(each, Partial)]
            self.versions.append(next((each for each in whole if is_version(found, each)), found))
        self.kept = len(self.versions) - 1
        return True

    def after_loss(self, found: Found) -> bool:
        """Whether the loss of the machine may leave this."""
        return self._allows(self.versions, found)

    def _allows(self, versions: Sequence[Version], found: Found) -> bool:
        if any(is_version(found, each) for each in versions):
            return True
        written = [each for each in versions if isinstance(each, bytes)]
        return self.is_in_place and bool(written) and is_mixture(found, written)


Mark = Mapping[str, int]
"""What was acknowledged at some moment."""


class Ledger:
    """Accounts by path, relative to the mount. Each path belongs to one thread."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self._lock = threading.Lock()

    def begin(self, path: str, *versions: Version, in_place: bool = False) -> None:
        """A change of `path` is on its way, over `versions` in this order."""
        with self._lock:
            account = self.accounts.setdefault(path, Account())
            account.is_in_place = account.is_in_place or in_place
            account.versions += versions

    def done(self, *paths: str) -> None:
        """All that was begun is acknowledged."""
        with self._lock:
            for path in paths:
                account = self.accounts[path]
                account.kept = len(account.versions) - 1

    def mark(self, *paths: str) -> Mark:
        """What is acknowledged now, of all paths without any."""
        with self._lock:
            return {path: (one := self.accounts[path]).dropped + one.kept for path in paths or self.accounts}

    def in_grid(self, mark: Mark) -> None:
        """What was acknowledged then is in the grid."""
        with self._lock:
            for path, version in mark.items():
                self.accounts[path].in_grid(version)

    def check(self, root: Path, *, is_lost: bool) -> int:
        """Compare everything with what is there, after a kill or a loss; returns the bytes that were read.

        Raises Broken.
        """
        read = 0
        for path, account in self.accounts.items():
            try:
                found: Found = (root / path).read_bytes()
            except FileNotFoundError:
                found = None
            read += len(found or b"")
            if not (account.after_loss(found) if is_lost else account.after_kill(found)):
                is_there = "is not there" if found is None else f"has {len(found)} bytes"
                may = account.versions if is_lost else account.versions[account.kept :]
                raise Broken(f"{path} {is_there}; it may be {', '.join(describe(v, found) for v in may)}")
        names = {str(path.relative_to(root)) for top in self.tops() for path in (root / top).rglob("*")}
        strange = {name for name in names if name not in self.accounts and not (root / name).is_dir()}
        if strange:
            raise Broken(f"nobody has made {', '.join(sorted(strange))}")
        self.accounts = {path: one for path, one in self.accounts.items() if one.versions != [None]}
        return read

    def tops(self) -> set[str]:
        """The directories in the root that are all the ledger's."""
        return {path.partition("/")[0] for path in self.accounts}


def describe(version: Version, found: Found) -> str:
    if isinstance(version, Partial):
        return f"part of {version.recipe.seed}"
    if version is None:
        return "absent"
    body = version if isinstance(version, bytes) else version.bytes()
    same = next((at for at, (a, b) in enumerate(zip(body, found or b"", strict=False)) if a != b), None)
    what = f"{len(body)} bytes" if isinstance(version, bytes) else f"whole {version.seed} of {len(body)}"
    return what if same is None else f"{what}, other from byte {same} on"
