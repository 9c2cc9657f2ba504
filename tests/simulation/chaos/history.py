"""What a file system was told, and what it may show after a failure. Pure.

All states in their order, and what was promised of them: an fsync that returned says that all operations up
to its call are in the grid, and this inode's bytes as they were then. After a killed process the last state
must be there; after a loss of power, or on another machine, one that was promised or a later one, and in it
no byte of a promised file that is older than the promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.simulation.chaos.model import EMPTY, Described, State

STEP = 512


class Violation(AssertionError):
    """A promise was broken. `checker` names the rule."""

    def __init__(self, checker: str, text: str) -> None:
        super().__init__(f"{checker}: {text}")
        self.checker = checker


@dataclass
class Promises:
    """Up to which states what was promised; indices of `History.states`."""

    named: int = 0
    """The names and attributes of this state are safe."""
    bytes: dict[int, int] = field(default_factory=dict)
    """Inode -> the state as of which its bytes are safe."""

    def all_of(self, state: State, index: int) -> None:
        """Everything in a state is safe."""
        self.named = max(self.named, index)
        for ino, node in state.nodes.items():
            if node.is_file:
                self.bytes[ino] = max(index, self.bytes.get(ino, 0))

    def one(self, ino: int, index: int) -> None:
        self.named = max(self.named, index)
        self.bytes[ino] = max(index, self.bytes.get(ino, 0))

    def forget_behind(self, index: int) -> None:
        """The states behind this one never were."""
        self.named = min(self.named, index)
        for ino in [ino for ino, at in self.bytes.items() if at > index]:
            del self.bytes[ino]


@dataclass
class History:
    """One file system as one machine after the other has it."""

    states: list[State] = field(default_factory=lambda: [EMPTY])
    grid: Promises = field(default_factory=Promises)
    """Whatever becomes of the machine."""
    local: Promises = field(default_factory=Promises)
    """While the machine's disk is there: an fsync with the weaker choice."""
    moved: list[tuple[int, int]] = field(default_factory=list)
    """(index, inode): this state is the first in which the inode took another one's name. Where it shows,
    the bytes written before it do."""
    cloned: list[tuple[int, int]] = field(default_factory=list)
    """(index, inode): the first state with a clone. The same."""
    maybe: list[State] = field(default_factory=list)
    """What operations would have led to that were not acknowledged: because the client died in the middle of
    one, or its disk failed. One of them may have been done, if it was the last."""

    @property
    def now(self) -> State:
        return self.states[-1]

    @property
    def last(self) -> int:
        return len(self.states) - 1

    def tell(self, state: State) -> None:
        """An operation was acknowledged."""
        self.states.append(state)
        self.maybe.clear()

    def branch(self) -> History:
        """A copy that goes its own way: of another machine that takes over."""
        return History(
            list(self.states),
            Promises(self.grid.named, dict(self.grid.bytes)),
            Promises(),
            list(self.moved),
            list(self.cloned),
        )

    # ---- checking

    def check_killed(self, found: State) -> None:
        """The process ended and its machine goes on: all that was acknowledged, and no more than the one
        operation under way."""
        problems = [difference(found, self.now)]
        problems += [difference(found, state, loosely=True) for state in self.maybe]
        if all(problems):
            raise Violation("prefix", "\nor ".join(problems))
        if problems[0]:
            self.states.append(found)
        self.maybe.clear()

    def check_power_lost(self, found: State, *, same_machine: bool) -> int:
        """What was promised is there, or what came in its place later. Returns the state's index.

        The history goes on from what was found.
        """
        named = max(self.grid.named, self.local.named) if same_machine else self.grid.named
        for state in self.maybe:
            if found.described_loosely == state.described_loosely:
                self.states.append(with_bytes(found, state))
                break
        self.maybe.clear()
        alike = [i for i in range(self.last, named - 1, -1) if self.states[i].described == found.described]
        if not alike:
            older = [i for i in range(named) if self.states[i].described == found.described]
            raise Violation(
                "synced names",
                f"state {named} of {self.last} was promised, found is "
                + (f"state {older[-1]}" if older else "none of them")
                + f"; {difference(found, self.states[named])}",
            )
        index = self._index_of(found, alike, same_machine)
        self._go_on(found, index, same_machine)
        return index

    def _index_of(self, found: State, alike: list[int], same_machine: bool) -> int:
        """Which of the states with these names it is, the latest first: two exchanges may cancel out."""
        failures: list[Violation] = []
        for index in alike:
            try:
                self._check_bytes(found, index, same_machine)
            except Violation as violation:
                failures.append(violation)
            else:
                return index
        raise failures[0]

    def _check_bytes(self, found: State, index: int, same_machine: bool) -> None:
        for path, ino in found.paths.items():
            if found.nodes[ino].is_file:
                since = self._promised(ino, index, same_machine)
                self._check_blend(path, ino, found.nodes[ino].data, since, index)

    def _promised(self, ino: int, index: int, same_machine: bool) -> int | None:
        """The state as of which this inode's bytes must be there; None: nobody promised any."""
        marks = [
            *[at for at in (self.grid.bytes.get(ino),) if at is not None],
            *[at for at in (self.local.bytes.get(ino),) if same_machine and at is not None],
            *[at - 1 for at, moved in self.moved if moved == ino and at <= index],
            *[at for at, clone in self.cloned if clone == ino and at <= index],
        ]
        return max(marks, default=None)

    def _check_blend(self, path: bytes, ino: int, data: bytes, since: int | None, index: int) -> None:
        low = 0 if since is None else min(since, index)
        versions: list[bytes] = []
        for state in self.states[low : index + 1]:
            node = state.nodes.get(ino)
            if node is not None and (not versions or versions[-1] is not node.data):
                versions.append(node.data)
        wrong = misfit(data, versions, zeros=since is None)
        if wrong is not None:
            promise = "no fsync" if since is None else f"its bytes as of state {since}"
            raise Violation(
                "foreign bytes" if since is None else "synced bytes",
                f"{path!r} (inode {ino}, {len(data)} bytes): byte {wrong} is none of the {len(versions)} "
                f"versions up to state {index}; promised: {promise}",
            )

    def _go_on(self, found: State, index: int, same_machine: bool) -> None:
        del self.states[index + 1 :]
        self.grid.forget_behind(index)
        if same_machine:
            self.local.forget_behind(index)
        else:
            self.local = Promises()
        self.moved = [(at, ino) for at, ino in self.moved if at <= index]
        self.cloned = [(at, ino) for at, ino in self.cloned if at <= index]
        self.states.append(found)


def with_bytes(found: State, maybe: State) -> State:
    """`found` with the bytes that the operation under way would have led to."""
    state = found
    for path, ino in maybe.paths.items():
        if maybe.nodes[ino].is_file:
            state = state.edit(found.paths[path], data=maybe.nodes[ino].data)
    return state


def check_equal(found: State, expected: State, checker: str) -> None:
    """Everything is as it was told."""
    if problem := difference(found, expected):
        raise Violation(checker, problem)


def misfit(data: bytes, versions: Sequence[bytes], *, zeros: bool) -> int | None:
    """The first byte that is that of no version at its place; None if there is none.

    Where a version ends before a byte, that byte may be zero; with `zeros` any may.
    """
    if any(data == version for version in versions):
        return None
    size_min = 0 if zeros else min(map(len, versions), default=0)
    for start in range(0, len(data), STEP):
        piece = data[start : start + STEP]
        if any(piece == version[start : start + len(piece)] for version in versions):
            continue
        if start >= size_min and not any(piece):
            continue
        for position in range(start, start + len(piece)):
            allowed = {version[position] for version in versions if position < len(version)}
            if position >= size_min:
                allowed.add(0)
            if data[position] not in allowed:
                return position
    return None


def first_difference(found: bytes, expected: bytes) -> str:
    if len(found) != len(expected):
        return f"{len(found)} bytes, not {len(expected)}"
    position = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return f"differs from byte {position} of {len(found)} on"


def difference(found: State, expected: State, *, loosely: bool = False) -> str:
    """What is other than expected, in a few words; empty if nothing is."""

    def of(state: State) -> Described:
        return state.described_loosely if loosely else state.described

    is_there, wanted = of(found), of(expected)
    lines = [f"{path!r} is missing" for path in wanted if path not in is_there]
    lines += [f"{path!r} is too much" for path in is_there if path not in wanted]
    lines += [
        f"{path!r} is {is_there[path]}, not {wanted[path]}"
        for path in wanted
        if path in is_there and is_there[path] != wanted[path]
    ]
    if not lines:
        for path, ino in expected.paths.items():
            here, there = found.nodes[found.paths[path]].data, expected.nodes[ino].data
            if here != there:
                lines.append(f"{path!r} (inode {ino}) {first_difference(here, there)}")
    return "; ".join(lines[:4]) + (f"; and {len(lines) - 4} more" if len(lines) > 4 else "")
