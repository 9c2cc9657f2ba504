"""What one file costs among a thousand and among a million. Run by scripts/million-files.

    scripts/million-files DIR [--counts 1000,100000,1000000] [--shapes directory,tree] [--bytes 0]

Makes a local grid and a file system below DIR, which must not exist, and takes all of it away at the
end. For every shape (all files in one directory, or a tree of directories with 100 files each) and every
count, the smallest first, it prints the microseconds per file of

    create    open with O_CREAT and O_EXCL, write --bytes bytes, close
    sync      `gridfs sync` after it: until the grid has everything
    remount   `gridfs umount` and `gridfs mount`, in milliseconds for the whole
    list      names and attributes of all, cold: what `ls -l` asks of the kernel
    stat      names looked up cold, in random order (100 000 of them at most), after another remount
    delete    unlink of all, and rmdir of the directories

of the clock and of the CPU of the daemon's loop, which other programs disturb less, and the daemon's
resident memory after each: now, and the peak of the process. Behind a figure stands its ratio to that of
the smallest count. Nothing in it is a test; it takes most of an hour on a small machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FILES_PER_DIRECTORY = 100
LOOKUPS_MAX = 100_000
STEPS = ("create", "sync", "remount", "list", "stat", "delete")
SCRIPTS = Path(__file__).resolve().parent
GRIDFS = Path(sys.executable).with_name("gridfs")


@dataclass(frozen=True)
class Daemon:
    """A look at a mount daemon."""

    pid: int
    cpu_s: float
    """Of its loop; worker threads are left out."""
    resident_mb: int
    peak_mb: int


@dataclass
class FileSystem:
    """A mounted file system on a local grid of its own."""

    directory: Path
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.directory / "mnt"

    def up(self) -> None:
        self.path.mkdir(parents=True)
        _run(SCRIPTS / "local-grid", "up", self.directory / "grid")
        servers = self.directory / "grid" / "servers"
        _run(GRIDFS, "create", self.directory / "home", "--servers", servers)
        self.mount()

    def mount(self) -> None:
        _run(GRIDFS, "mount", self.directory / "home", self.path)

    def remount(self) -> None:
        _run(GRIDFS, "umount", self.path)
        self.mount()

    def sync(self) -> None:
        _run(GRIDFS, "sync", self.path)

    def daemon(self) -> Daemon:
        """What the mount daemon has used so far."""
        report = json.loads(_run(GRIDFS, "status", self.directory / "home", "--json"))
        process = Path(f"/proc/{report['pid']}")
        values = {}
        for line in (process / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                values[name] = int(value.split()[0]) * 1024 // 1_000_000
        cpu_ns = int((process / "schedstat").read_text().split()[0])
        return Daemon(report["pid"], cpu_ns / 1e9, values["VmRSS"], values["VmHWM"])

    def down(self) -> None:
        subprocess.run([GRIDFS, "umount", self.path], check=False, capture_output=True)
        _run(SCRIPTS / "local-grid", "down", self.directory / "grid")
        shutil.rmtree(self.directory)


def _run(*words: object) -> str:
    done = subprocess.run(
        [str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"million-files: {words[0]} failed: {done.stderr.strip()}")
    return done.stdout


@dataclass(frozen=True)
class Forest:
    """`count` files below `root`, in one directory or a hundred a directory."""

    root: Path
    count: int
    is_tree: bool
    size: int

    def directories(self) -> Iterator[tuple[Path, range]]:
        """Every directory with the numbers of its files."""
        step = FILES_PER_DIRECTORY if self.is_tree else self.count
        for low in range(0, self.count, step):
            yield self._directory(low), range(low, min(low + step, self.count))

    def _directory(self, number: int) -> Path:
        if not self.is_tree:
            return self.root
        directory = number // FILES_PER_DIRECTORY
        return self.root / f"{directory // FILES_PER_DIRECTORY}" / f"{directory}"

    def create(self) -> int:
        content = bytes(self.size)
        for directory, numbers in self.directories():
            directory.mkdir(parents=True, exist_ok=True)
            with opened(directory) as place:
                for number in numbers:
                    file = os.open(
                        f"file-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644, dir_fd=place
                    )
                    if content:
                        os.write(file, content)
                    os.close(file)
        return self.count

    def list(self) -> int:
        seen = 0
        for directory, _ in self.directories():
            with os.scandir(directory) as entries:
                for entry in entries:
                    seen += entry.stat(follow_symlinks=False).st_size == self.size
        if seen != self.count:
            raise SystemExit(f"million-files: the listing has {seen} files, not {self.count}")
        return self.count

    def stat(self) -> int:
        chosen = random.Random(1).sample(range(self.count), min(self.count, LOOKUPS_MAX))
        for number in chosen:
            os.stat(self._directory(number) / f"file-{number}")
        return len(chosen)

    def delete(self) -> int:
        for directory, numbers in self.directories():
            with opened(directory) as place:
                for number in numbers:
                    os.unlink(f"file-{number}", dir_fd=place)
            if self.is_tree:
                directory.rmdir()
        if self.is_tree:
            for directory in self.root.iterdir():
                directory.rmdir()
        self.root.rmdir()
        return self.count


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield place
    finally:
        os.close(place)


@dataclass
class Report:
    """Prints one line a step as soon as it is known; the ratios are to the first count."""

    first: dict[str, float] = field(default_factory=dict)

    def line(self, count: int, step: str, wall: float, cpu: float, daemon: Daemon) -> None:
        unit = "ms" if step == "remount" else "us a file"
        print(
            f"{count:>9} {step:<8} {wall:>8.1f} {unit:<9} {self._ratio(step, wall):>5.2f}x"
            f"   daemon {cpu:>7.1f} {self._ratio(f'{step} of the daemon', cpu):>5.2f}x"
            f"   memory {daemon.resident_mb:>4} MB, peak {daemon.peak_mb} MB",
            flush=True,
        )

    def _ratio(self, name: str, value: float) -> float:
        return value / (self.first.setdefault(name, value) or 1.0)


def measure(system: FileSystem, forest: Forest, report: Report) -> None:
    forest.root.mkdir()

    def step(name: str, work: Callable[[], int]) -> None:
        before = system.daemon()
        begin = time.monotonic()
        files = work()
        seconds = time.monotonic() - begin
        after = system.daemon()
        used = after.cpu_s - (before.cpu_s if before.pid == after.pid else 0.0)
        scale = 1e3 if name == "remount" else 1e6 / files
        report.line(forest.count, name, seconds * scale, used * scale, after)

    def whole(work: Callable[[], None]) -> Callable[[], int]:
        def call() -> int:
            work()
            return forest.count

        return call

    step("create", forest.create)
    step("sync", whole(system.sync))
    step("remount", whole(system.remount))
    step("list", forest.list)
    system.remount()
    step("stat", forest.stat)
    step("delete", forest.delete)
    system.sync()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/million-files", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--counts", default="1000,100000,1000000")
    parser.add_argument("--shapes", default="directory,tree")
    parser.add_argument("--bytes", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.directory.exists():
        parser.error(f"{chosen.directory} exists already")
    system = FileSystem(chosen.directory.resolve())
    try:
        system.up()
        for shape in chosen.shapes.split(","):
            print(f"{shape}:", flush=True)
            report = Report()
            for count in map(int, chosen.counts.split(",")):
                forest = Forest(system.path / f"{shape}-{count}", count, shape == "tree", chosen.bytes)
                measure(system, forest, report)
    finally:
        system.down()


if __name__ == "__main__":
    main()
