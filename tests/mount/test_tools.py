"""Ordinary tools on a 4-of-6 mount; what they wrote reads back equal after a remount."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from tests.mount.support import content, describe, describe_tree, sha256, shell, write_large
from tests.processes import MountedFileSystem

MIB = 1 << 20
LIBRARY = Path(json.__file__).parent.parent
PARTS_OF_LIBRARY = ("json", "email", "encodings", "asyncio", "xml", "importlib")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A part of Python's own library: a few hundred files of all small sizes."""
    source = tmp_path / "library"
    for name in PARTS_OF_LIBRARY:
        shutil.copytree(LIBRARY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    return source


# ---- tools ------------------------------------------------------------------------------------------


def test_cp_of_a_library(tools: MountedFileSystem, place: Path, library: Path) -> None:
    shell("cp", "-a", library, place / "copy")
    shell("diff", "-r", library, place / "copy")
    tools.remount()
    shell("diff", "-r", library, place / "copy")
    assert {name: seen["mtime"] for name, seen in describe_tree(place / "copy").items()} == {
        name: seen["mtime"] for name, seen in describe_tree(library).items()
    }


def test_git(tools: MountedFileSystem, place: Path, library: Path) -> None:
    shell("git", "init", "-q", library)
    for part in PARTS_OF_LIBRARY:
        shell("git", "-C", library, "add", part)
        shell("git", "-C", library, "commit", "-q", "-m", part)
    clone = place / "clone"
    shell("git", "clone", "-q", "--no-local", library, clone)
    shell("git", "-C", clone, "fsck", "--full", "--strict")
    (clone / "json" / "new.py").write_text("new = True\n")
    shell("git", "-C", clone, "add", "-A")
    shell("git", "-C", clone, "commit", "-q", "-m", "new")
    shell("git", "-C", clone, "mv", "email", "mail")
    shell("git", "-C", clone, "commit", "-q", "-m", "moved")
    shell("git", "-C", clone, "gc", "-q", "--prune=now")
    history = shell("git", "-C", clone, "log", "--format=%H %s").stdout
    assert len(history.splitlines()) == len(PARTS_OF_LIBRARY) + 2
    tools.remount()
    shell("git", "-C", clone, "fsck", "--full", "--strict")
    assert shell("git", "-C", clone, "log", "--format=%H %s").stdout == history
    assert shell("git", "-C", clone, "status", "--porcelain").stdout == ""


def test_tar(tools: MountedFileSystem, place: Path, library: Path) -> None:
    archive = place / "library.tar"
    shell("tar", "-C", library, "-cf", archive, ".")
    (place / "out").mkdir()
    shell("tar", "-C", place / "out", "-xpf", archive)
    tools.remount()
    # Compares contents, modes, owners and times with the archive.
    assert shell("tar", "-C", place / "out", "--compare", "-f", archive).stdout == ""
    shell("diff", "-r", library, place / "out")


def test_rsync_has_nothing_to_do_the_second_time(
    tools: MountedFileSystem, place: Path, library: Path
) -> None:
    (library / "link").symlink_to("json/decoder.py")
    os.link(library / "json" / "encoder.py", library / "hard")
    command = ("rsync", "-aHX", "--itemize-changes", f"{library}/", place / "copy")
    assert shell(*command).stdout
    assert shell(*command).stdout == ""
    tools.remount()
    assert shell(*command).stdout == ""
    assert shell(*command, "--checksum", "--dry-run").stdout == ""
    (library / "json" / "decoder.py").write_text("changed\n")
    assert [line.split()[1] for line in shell(*command).stdout.splitlines()] == ["json/decoder.py"]


@pytest.mark.parametrize(("mode", "transactions"), [("delete", 100), ("wal", 400)])
def test_sqlite(tools: MountedFileSystem, place: Path, mode: str, transactions: int) -> None:
    path = place / "db.sqlite"
    database = sqlite3.connect(path, isolation_level=None)
    assert database.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, body BLOB)")
    database.execute("CREATE INDEX by_body ON item (body)")
    expected: dict[int, bytes] = {}
    for number in range(transactions):
        body = content(("sqlite", number), 50 + number % 700)
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO item VALUES (?, ?)", (number, body))
        if number % 7 == 3:
            database.execute("DELETE FROM item WHERE id = ?", (number - 2,))
        if number % 11 == 5:
            database.execute("ROLLBACK")
            continue
        database.execute("COMMIT")
        expected[number] = body
        if number % 7 == 3:
            expected.pop(number - 2, None)
    assert dict(database.execute("SELECT id, body FROM item")) == expected
    database.close()
    tools.remount()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert dict(database.execute("SELECT id, body FROM item")) == expected
    database.close()
    assert shell("sqlite3", path, "SELECT count(*) FROM item").stdout == f"{len(expected)}\n"


def test_df_and_du(tools: MountedFileSystem, place: Path) -> None:
    numbers = os.statvfs(place)
    assert numbers.f_blocks >= numbers.f_bfree > 0
    assert numbers.f_ffree > 0
    assert numbers.f_namemax == 255
    line = shell("df", "--output=fstype,size,avail,target", tools.path).stdout.splitlines()[1].split()
    assert (line[0], line[3]) == ("fuse.gridfs", str(tools.path))
    assert int(line[1]) >= int(line[2]) > 0
    (place / "file").write_bytes(content("du", 3 * MIB))
    tools.sync()
    assert shell("du", "--block-size=1", place / "file").stdout.split()[0] == str(3 * MIB)


def test_a_large_file(tools: MountedFileSystem, place: Path) -> None:
    written = write_large(place / "large", 64 * MIB, 1)
    assert sha256(place / "large") == written
    tools.remount()
    assert (place / "large").stat().st_size == 64 * MIB
    assert sha256(place / "large") == written


@pytest.mark.slow
def test_a_very_large_file(tools: MountedFileSystem, place: Path) -> None:
    written = write_large(place / "large", 2048 * MIB, 2)
    tools.remount()
    assert sha256(place / "large") == written
    shell("cp", place / "large", place / "copy")
    tools.remount()
    assert sha256(place / "copy") == written
    (place / "large").unlink()
    (place / "copy").unlink()


# ---- names and attributes ---------------------------------------------------------------------------


def test_kinds_and_attributes_are_kept(tools: MountedFileSystem, place: Path) -> None:
    (place / "file").write_bytes(b"content")
    os.link(place / "file", place / "hard")
    (place / "symbolic").symlink_to("file")
    (place / "dangling").symlink_to("x" * 4000)
    os.mkfifo(place / "fifo", 0o640)
    os.mknod(place / "socket", stat.S_IFSOCK | 0o700)
    if os.getuid() == 0:
        os.mknod(place / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.chown(place / "fifo", 1234, 5678)
        os.chown(place / "symbolic", 12, 34, follow_symlinks=False)
    os.chmod(place / "file", 0o4751)  # noqa: S103 - the bits must be kept
    # An access time ahead of all others, so that reading does not move it.
    os.utime(place / "file", ns=(4_000_000_000_000_000_001, 1_600_000_000_123_456_789))
    os.utime(place / "symbolic", ns=(5, 7), follow_symlinks=False)
    directory = place / "directory"
    directory.mkdir(0o2750)
    directory.chmod(0o2750)
    (directory / "child").mkdir()
    (directory / ("ö" * 127)).write_bytes(b"")
    (directory / os.fsdecode(b"\xff\n\\ '\"")).write_bytes(b"any bytes")
    os.utime(directory, ns=(1, 1_500_000_000_000_000_001))
    for value in (b"", b"value", bytes(range(256)) * 16):
        os.setxattr(directory / "child", f"user.{len(value)}", value)
    before = describe_tree(place)
    assert before["file"]["links"] == 2
    assert before["file"]["mode"] == oct(stat.S_IFREG | 0o4751)
    assert before["file"]["mtime"] == 1_600_000_000_123_456_789
    assert (place / "file").stat().st_atime_ns == 4_000_000_000_000_000_001
    assert int(before["directory/child"]["mode"], 8) & stat.S_ISGID  # from its parent
    assert (place / "file").samefile(place / "hard")
    assert (place / "symbolic").read_bytes() == b"content"
    assert directory.stat().st_nlink == 3
    tools.remount()
    assert describe_tree(place) == before
    (place / "hard").write_bytes(b"other")
    assert (place / "file").read_bytes() == b"other"
    (place / "file").unlink()
    assert (place / "hard").stat().st_nlink == 1


def test_extended_attributes(tools: MountedFileSystem, place: Path) -> None:
    path = place / "file"
    path.touch()
    shell("setfattr", "-n", "user.tool", "-v", "0x00ff10", path)
    os.setxattr(path, "user.new", b"1", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(path, "user.new", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.new", b"3", os.XATTR_REPLACE)
    with pytest.raises(OSError) as absent:  # noqa: PT011 - the errno is checked
        os.setxattr(path, "user.absent", b"", os.XATTR_REPLACE)
    assert absent.value.errno == errno.ENODATA
    os.setxattr(path, "user.gone", b"x")
    os.removexattr(path, "user.gone")
    for _ in range(2):
        assert sorted(os.listxattr(path)) == ["user.new", "user.tool"]
        assert os.getxattr(path, "user.new") == b"3"
        assert "0x00ff10" in shell("getfattr", "-e", "hex", "-n", "user.tool", path).stdout
        tools.remount()
    with pytest.raises(OSError) as absent:  # noqa: PT011
        os.getxattr(path, "user.gone")
    assert absent.value.errno == errno.ENODATA


def test_what_linux_refuses_is_refused(place: Path) -> None:
    directory, file = place / "directory", place / "file"
    directory.mkdir()
    file.write_bytes(b"x")
    (directory / "child").mkdir()
    cases = [
        (errno.EEXIST, lambda: directory.mkdir()),
        (errno.EEXIST, lambda: os.open(file, os.O_CREAT | os.O_EXCL)),
        (errno.ENOTEMPTY, lambda: directory.rmdir()),
        (errno.ENOTDIR, lambda: os.rmdir(file)),
        (errno.EISDIR, lambda: os.unlink(directory)),
        (errno.ENOENT, lambda: os.unlink(place / "absent")),
        (errno.ENAMETOOLONG, lambda: (place / ("n" * 256)).touch()),
        (errno.EINVAL, lambda: directory.rename(directory / "child" / "inside")),
        (errno.ENOTDIR, lambda: directory.rename(file)),
        (errno.EISDIR, lambda: file.rename(directory)),
        (errno.EPERM, lambda: os.link(directory, place / "hard")),
        (errno.ENOTDIR, lambda: (file / "below").touch()),
    ]
    for code, attempt in cases:
        with pytest.raises(OSError) as refused:  # noqa: PT011
            attempt()
        assert refused.value.errno == code
    assert sorted(path.name for path in place.rglob("*")) == ["child", "directory", "file"]


def test_rename_over_keeps_the_old_file_open(tools: MountedFileSystem, place: Path) -> None:
    target = place / "target"
    target.write_bytes(b"version 0")
    with target.open("rb") as first:
        for version in range(1, 30):
            fresh = place / "fresh"
            with fresh.open("wb") as file:
                file.write(b"version %d" % version)
                if version % 3 == 0:
                    os.fsync(file.fileno())
            fresh.rename(target)
            assert target.read_bytes() == b"version %d" % version
        assert first.read() == b"version 0"
    assert [path.name for path in place.iterdir()] == ["target"]
    (place / "a").mkdir()
    (place / "b").mkdir()
    (place / "a" / "inside").write_bytes(b"inside")
    (place / "a").rename(place / "b")  # over an empty directory
    tools.remount()
    assert target.read_bytes() == b"version 29"
    assert (place / "b" / "inside").read_bytes() == b"inside"
    assert not (place / "a").exists()


def test_an_open_file_lives_on_without_a_name(tools: MountedFileSystem, place: Path) -> None:
    body = content("nameless", 300_000)
    path = place / "file"
    path.write_bytes(body)
    tools.sync()
    with path.open("r+b", buffering=0) as file:
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == body
        file.seek(1000)
        file.write(b"changed")
        os.ftruncate(file.fileno(), 200_000)
        path.write_bytes(b"another file of that name")
        file.seek(0)
        assert file.read() == body[:1000] + b"changed" + body[1007:200_000]
    with (place / "twin").open("w+b") as file:
        (place / "twin").unlink()
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == body
    tools.remount()
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        "file": b"another file of that name"
    }


def test_a_directory_is_listed_rightly_while_files_come_and_go(tools: MountedFileSystem, place: Path) -> None:
    lasting = {f"lasting-{number}" for number in range(500)}
    passing = [f"passing-{number}" for number in range(500)]
    for name in sorted(lasting) + passing:
        (place / name).touch()
    seen: list[str] = []
    with os.scandir(place) as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            if count < len(passing):
                (place / passing[count]).unlink()
                (place / f"new-{count}").touch()
    assert sorted(name for name in seen if name in lasting) == sorted(lasting)  # each once
    assert len(seen) == len(set(seen))
    tools.remount()
    assert set(os.listdir(place)) == lasting | {f"new-{number}" for number in range(len(passing))}
    shutil.rmtree(place)
    assert not place.exists()


# ---- contents ---------------------------------------------------------------------------------------


def test_a_shared_mapping_is_written(tools: MountedFileSystem, place: Path) -> None:
    path = place / "mapped"
    body = bytearray(content("mapped", MIB + 12345))
    path.write_bytes(body)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:] == body
        for offset in (0, 4095, 65536, 500_000, MIB + 12340):
            mapped[offset : offset + 5] = body[offset : offset + 5] = b"MAPPED"[:5]
        mapped.flush()
        assert path.read_bytes() == body
        mapped[70_000:70_010] = body[70_000:70_010] = b"without me"  # munmap and close write it
    tools.remount()
    assert path.read_bytes() == body


def test_sparse_files(tools: MountedFileSystem, place: Path) -> None:
    path = place / "sparse"
    with path.open("wb") as file:
        file.seek(10 * MIB)
        file.write(b"in the middle")
        file.truncate(24 * MIB)
    assert path.stat().st_size == 24 * MIB
    for _ in range(2):
        assert path.stat().st_blocks * 512 < MIB
        assert int(shell("du", "--block-size=1", path).stdout.split()[0]) < MIB
        with path.open("rb") as file:
            file.seek(10 * MIB - 3)
            assert file.read(20) == bytes(3) + b"in the middle" + bytes(4)
        tools.remount()
    shell("cp", "--sparse=always", path, place / "copy")
    shell("cmp", path, place / "copy")
    tools.remount()
    assert (place / "copy").stat().st_blocks * 512 < MIB
    shell("cmp", path, place / "copy")
    os.truncate(path, 10 * MIB + 5)
    os.truncate(path, 11 * MIB)
    with path.open("rb") as file:
        file.seek(10 * MIB)
        assert file.read() == b"in th" + bytes(MIB - 5)  # what was cut off does not come back


def test_writers_at_once(tools: MountedFileSystem, place: Path) -> None:
    """Several threads write their own parts of one file, and append to another."""
    shared, appended = place / "shared", place / "appended"
    shared.touch()
    parts = 8
    size = 3 * 65536 + 777

    def write(number: int) -> None:
        with shared.open("r+b") as file:
            file.seek(number * size)
            file.write(content(number, size))
        for line in range(50):
            with appended.open("ab") as file:
                file.write(b"%d %d\n" % (number, line))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tools.remount()
    assert shared.read_bytes() == b"".join(content(number, size) for number in range(parts))
    lines = appended.read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d %d" % (number, line) for number in range(parts) for line in range(50))


def test_every_size_around_the_boundaries(tools: MountedFileSystem, place: Path) -> None:
    sizes = sorted(
        {max(0, base + step) for base in (0, 4096, 65536, 4 * 65536, MIB) for step in (-1, 0, 1, 16)}
    )
    for size in sizes:
        (place / str(size)).write_bytes(content(size, size))
    seen = {size: describe(place / str(size)) for size in sizes}
    tools.remount()
    for size in sizes:
        assert (place / str(size)).read_bytes() == content(size, size)
        assert describe(place / str(size)) == seen[size]
    for size in sizes:  # overwritten in part, over data that is in packs
        with (place / str(size)).open("r+b") as file:
            file.seek(size // 2)
            file.write(b"over")
    tools.remount()
    for size in sizes:
        body = content(size, size)
        assert (place / str(size)).read_bytes() == body[: size // 2] + b"over" + body[size // 2 + 4 :]


def test_fsync_of_everything(tools: MountedFileSystem, place: Path) -> None:
    """fsync of a file and of its directory, fdatasync, sync(1): each returns without an error."""
    with (place / "file").open("wb") as file:
        file.write(b"x" * 100_000)
        os.fdatasync(file.fileno())
        file.write(b"y")
        os.fsync(file.fileno())
        report = tools.status()
        assert report["dirty_bytes"] == 0
        assert report["operations_shipped"] == report["operations"]
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(descriptor)
    os.close(descriptor)
    shell("sync", place / "file")
