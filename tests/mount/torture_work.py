"""What goes on in a mount while its daemon is killed: cp, git, sqlite, and files written by system calls.

Each kind of work is a thread with a part of the mount of its own. It works until it is stopped or the mount
is dead, and tells the ledger, or remembers, what was acknowledged.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

from tests.mount.ledger import Broken, Ledger, Partial, Recipe
from tests.mount.support import shell

DEAD = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a program gets from a mount whose daemon was killed."""
VERSIONS_MAX = 24
IN_PLACE_BYTES_MAX = 300_000


class Work:
    """One kind of work on the mount at `root`."""

    name: str

    def __init__(self, root: Path, ledger: Ledger, seed: int) -> None:
        self.place = root / self.name
        self.ledger = ledger
        self.chance = random.Random(f"{seed} {self.name}")
        self.counted: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self.place.mkdir(exist_ok=True)
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name=self.name)
        self._thread.start()

    def stop(self) -> None:
        """Let it end, and wait. Raises what it met that a dead mount does not explain."""
        self._stop.set()
        self.interrupt()
        if self._thread is not None:
            self._thread.join()
        if self.failure is not None:
            raise Broken(f"{self.name}: {self.failure}") from self.failure

    def abandon(self) -> None:
        """End it, whatever it met."""
        self._stop.set()
        self.interrupt()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.step()
        except OSError as error:
            # Pages that can no longer be written give EIO to who closes.
            if error.errno not in DEAD and not is_dead(self.place):
                self.failure = error
        except BaseException as error:
            self.failure = error
        finally:
            self.left()

    def step(self) -> None:
        """Do one thing."""
        raise NotImplementedError

    def must_live(self) -> None:
        """Raise OSError where the mount is dead. To be called between a close and its entry in the ledger: a
        kernel that has lost the daemon drops the pages that it still held, and does not tell who closes."""
        if is_dead(self.place):
            raise OSError(errno.ENOTCONN, "the mount is dead")

    def interrupt(self) -> None:
        """End a program that is under way."""

    def left(self) -> None:
        """The thread ends: close what is open."""

    def synced(self, mark: object) -> None:
        """Everything that `mark` said was acknowledged is in the grid."""

    def mark(self) -> object:
        return None

    def check(self, *, is_lost: bool) -> None:
        """After a kill, or a loss, beyond the ledger. Raises Broken."""


class Files(Work):
    """Whole files: made, put in another's place by rename, removed; fsync here and there."""

    name = "files"

    def step(self) -> None:
        name = f"{self.name}/file-{self.chance.randrange(40)}"
        path = self.place / Path(name).name
        recipe = Recipe(
            f"{name} {self.chance.getrandbits(40)}", int(self.chance.paretovariate(0.15)) % 700_000
        )
        is_durable = self.chance.random() < 0.25
        kind = self.chance.choices(("make", "replace", "remove"), (4, 4, 1))[0]
        if kind == "replace" or (kind == "make" and path.exists()):
            self._replace(name, path, recipe, is_durable=is_durable)
        elif kind == "make":
            self.ledger.begin(name, Partial(recipe), recipe)
            self._write(path, recipe, is_durable=is_durable)
            self.must_live()
            self.ledger.done(name)
            if is_durable:
                self.ledger.in_grid(self.ledger.mark(name))
        elif path.exists():
            self.ledger.begin(name, None)
            path.unlink()
            self.ledger.done(name)
        self.counted[kind] += 1

    def _replace(self, name: str, path: Path, recipe: Recipe, *, is_durable: bool) -> None:
        temporary, temporary_name = path.with_suffix(".new"), f"{name}.new"
        self.ledger.begin(temporary_name, None, Partial(recipe), recipe)
        temporary.unlink(missing_ok=True)
        self._write(temporary, recipe, is_durable=is_durable)
        self.must_live()
        self.ledger.done(temporary_name)
        self.ledger.begin(temporary_name, None)
        # A new name does not wait for the data, only one that takes another's place does.
        self.ledger.begin(name, *(() if path.exists() else (Partial(recipe, by_loss=True),)), recipe)
        temporary.rename(path)
        self.ledger.done(name, temporary_name)
        if is_durable:
            mark = self.ledger.mark(name, temporary_name)
            sync_directory(self.place)
            self.ledger.in_grid(mark)

    def _write(self, path: Path, recipe: Recipe, *, is_durable: bool) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            body, at = memoryview(recipe.bytes()), 0
            while at < len(body):
                at += os.write(descriptor, body[at : at + self.chance.randrange(1, 200_000)])
            if is_durable:
                os.fsync(descriptor)
                self.counted["fsync"] += 1
        finally:
            os.close(descriptor)


class InPlace(Work):
    """Writes at random places of files that stay open for a while."""

    name = "in-place"

    def __init__(self, root: Path, ledger: Ledger, seed: int) -> None:
        super().__init__(root, ledger, seed)
        self._now: dict[str, bytearray] = {}
        self._open: dict[str, int] = {}

    def step(self) -> None:
        name = f"{self.name}/data-{self.chance.randrange(6)}"
        if name not in self._open:
            self._enter(name)
        descriptor, now = self._open[name], self._now[name]
        offset = self.chance.randrange(min(len(now) + 5000, IN_PLACE_BYTES_MAX))
        data = self.chance.randbytes(self.chance.randrange(1, 20_000))
        now += bytes(max(0, offset - len(now)))
        now[offset : offset + len(data)] = data
        self.ledger.begin(name, bytes(now), in_place=True)
        account = self.ledger.accounts[name]
        is_durable = self.chance.random() < 0.08 or len(account.versions) > VERSIONS_MAX
        try:
            os.pwrite(descriptor, data, offset)
            if is_durable:
                os.fsync(descriptor)
        except OSError:
            # An error is told once: closing it may be good now, and says nothing of what was written.
            os.close(self._open.pop(name))
            raise
        self.counted["write"] += 1
        if is_durable:
            self.ledger.done(name)
            self.ledger.in_grid(self.ledger.mark(name))
            self.counted["fsync"] += 1
        elif self.chance.random() < 0.1:
            del self._open[name]
            os.close(descriptor)
            self.must_live()
            self.ledger.done(name)

    def _enter(self, name: str) -> None:
        path = self.place / Path(name).name
        self._now[name] = bytearray(path.read_bytes()) if path.exists() else bytearray()
        if not path.exists():
            self.ledger.begin(name, b"", in_place=True)
        self._open[name] = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def left(self) -> None:
        for name, descriptor in list(self._open.items()):
            try:
                os.close(descriptor)
                self.must_live()
            except OSError:
                continue
            self.ledger.done(name)
        self._open.clear()


class Copies(Work):
    """cp -r of a tree, and rm -r of an older copy."""

    name = "copies"

    def __init__(self, root: Path, ledger: Ledger, seed: int, source: Path) -> None:
        super().__init__(root, ledger, seed)
        self._source = source
        self._recipes: dict[str, Recipe] = {}
        for number in range(24):
            size = int(self.chance.paretovariate(0.15)) % 900_000
            name = f"folder-{number % 3}/{number}"
            self._recipes[name] = Recipe(f"{seed} source {number}", size)
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._recipes[name].bytes())
        self._copies = 0
        self._program: subprocess.Popen[bytes] | None = None

    def step(self) -> None:
        number, self._copies = self._copies, self._copies + 1
        names = {f"{self.name}/copy-{number}/{name}": recipe for name, recipe in self._recipes.items()}
        for name, recipe in names.items():
            self.ledger.begin(name, Partial(recipe), recipe)
        if not self._command("cp", "-r", self._source, self.place / f"copy-{number}"):
            return
        self.ledger.done(*names)
        self.counted["copy"] += 1
        if number >= 2:
            old = [
                name for name in self.ledger.accounts if name.startswith(f"{self.name}/copy-{number - 2}/")
            ]
            for name in old:
                self.ledger.begin(name, None)
            if self._command("rm", "-rf", self.place / f"copy-{number - 2}"):
                self.ledger.done(*old)
                self.counted["remove"] += 1

    def _command(self, *words: object) -> bool:
        """False where it failed because the mount is dead or it was ended."""
        with subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as program:
            self._program = program
            if self._stop.is_set():
                program.kill()
            _, said = program.communicate()
        self._program = None
        if program.returncode == 0 and not is_dead(self.place):
            return True
        if program.returncode > 0 and not is_dead(self.place):
            raise Broken(f"{words[0]} failed: {said.decode(errors='replace')}")
        self._stop.set()
        return False

    def interrupt(self) -> None:
        if (program := self._program) is not None:
            program.kill()


class Git(Work):
    """Commits, one after the other, each with its number as its message."""

    name = "git"

    def __init__(self, root: Path, ledger: Ledger, seed: int) -> None:
        super().__init__(root, ledger, seed)
        self.kept = 0
        """The last commit that was acknowledged."""
        self.in_grid = 0

    def step(self) -> None:
        if not self.kept:
            self._git("init", "-q", "-b", "main")
            self._git("config", "gc.auto", "0")
            self._git("config", "core.fsync", "all")  # or the loss of the machine may cut files that are new
        number = self.kept + 1
        for _ in range(self.chance.randrange(1, 12)):
            path = self.place / f"folder-{self.chance.randrange(4)}" / f"{self.chance.randrange(12)}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self.chance.randbytes(self.chance.randrange(30_000)))
        self._git("add", "-A")
        self._git("commit", "-q", "--allow-empty", "-m", str(number))
        self.must_live()
        self.kept = number
        self.counted["commit"] += 1

    def _git(self, *words: str) -> str:
        # On a dead mount it may also end by SIGBUS: it maps files.
        done = shell("git", "-C", self.place, *words, good=tuple(range(-64, 256)))
        if done.returncode:
            if is_dead(self.place):
                raise OSError(errno.ENOTCONN, "the mount is dead")
            raise Broken(f"git {words[0]} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def mark(self) -> int:
        return self.kept

    def synced(self, mark: object) -> None:
        assert isinstance(mark, int)
        self.in_grid = mark

    def check(self, *, is_lost: bool) -> None:
        wanted = self.in_grid if is_lost else self.kept
        found = 0
        if (self.place / ".git").exists():
            for lock in (self.place / ".git").rglob("*.lock"):
                lock.unlink()  # of a git that was cut off: what git itself asks to be done
            if wanted or (self.place / ".git" / "refs" / "heads" / "main").exists():
                said = self._git("fsck", "--full", "--strict")
                if "missing" in said or "corrupt" in said:
                    raise Broken(f"git fsck: {said}")
                found = int(self._git("log", "-1", "--format=%s"))
                self._git("reset", "-q", "--hard")
                if self._git("status", "--porcelain", "--untracked-files=no"):
                    raise Broken("git: the working tree differs after a reset")
        if not wanted <= found <= self.kept + 1:
            raise Broken(f"git: the last commit is {found}; {wanted} was promised, of {self.kept}")
        self.kept = found


PROGRAM = """
import random, sqlite3, sys, zlib
path, first, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3]
chance = random.Random(seed)
database = sqlite3.connect(path, isolation_level=None)
database.execute("PRAGMA synchronous=EXTRA")
database.execute("CREATE TABLE IF NOT EXISTS row (number INTEGER PRIMARY KEY, crc INTEGER, data BLOB)")
number = first
while True:
    number += 1
    database.execute("BEGIN IMMEDIATE")
    data = chance.randbytes(chance.randrange(9000))
    database.execute("INSERT INTO row VALUES (?, ?, ?)", (number, zlib.crc32(data), data))
    old = chance.randrange(1, number + 1)
    changed = chance.randbytes(chance.randrange(9000))
    database.execute("UPDATE row SET crc = ?, data = ? WHERE number = ?", (zlib.crc32(changed), changed, old))
    database.execute("COMMIT")
    print(number, flush=True)
"""


class Transactions(Work):
    """A program that commits to an SQLite database, with fsync, and says so after each."""

    name = "sqlite"

    def __init__(self, root: Path, ledger: Ledger, seed: int) -> None:
        super().__init__(root, ledger, seed)
        self.kept = 0
        self._program: subprocess.Popen[str] | None = None

    @property
    def _path(self) -> Path:
        return self.place / "database"

    def step(self) -> None:
        words = [sys.executable, "-c", PROGRAM, self._path, str(self.kept), str(self.chance.random())]
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as program:
            self._program = program
            if self._stop.is_set():
                program.kill()
            assert program.stdout is not None
            assert program.stderr is not None
            for line in program.stdout:
                self.kept = int(line)
                self.counted["transaction"] += 1
            said = program.stderr.read()
        self._program = None
        if program.returncode > 0 and not is_dead(self.place):
            raise Broken(f"sqlite failed: {said}")
        self._stop.set()

    def interrupt(self) -> None:
        if (program := self._program) is not None:
            program.kill()

    def check(self, *, is_lost: bool) -> None:
        """Each commit was synced: a loss may take no more than a kill."""
        words = [sys.executable, "-c", CHECK, self._path]
        done = shell(*words, good=(0, 1))
        if done.returncode:
            raise Broken(f"sqlite: {done.stderr.strip() or done.stdout.strip()}")
        found = int(done.stdout)
        if not self.kept <= found <= self.kept + 1:
            raise Broken(f"sqlite: {found} transactions are there, {self.kept} were acknowledged")
        self.kept = found


CHECK = """
import sqlite3, sys, zlib
database = sqlite3.connect(sys.argv[1])
answer = database.execute("PRAGMA integrity_check").fetchall()
if answer != [("ok",)]:
    sys.exit(f"integrity_check says {answer}")
there = database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'row'").fetchone()[0]
rows = database.execute("SELECT number, crc, data FROM row ORDER BY number").fetchall() if there else []
if [row[0] for row in rows] != list(range(1, len(rows) + 1)):
    sys.exit("rows are missing")
if any(zlib.crc32(data) != crc for _, crc, data in rows):
    sys.exit("a row is torn")
print(len(rows))
"""


def is_dead(path: Path) -> bool:
    try:
        os.statvfs(path)  # which the kernel does not answer by itself
    except OSError as error:
        return error.errno in DEAD
    return False


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
