"""Real programs at work on a mount: what they make is right at once and after a remount."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.mount.support import content, contents_of, describe_tree, shell
from tests.processes import MountedFileSystem

MIB = 1 << 20
LIBRARY = Path(json.__file__).parent.parent


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A part of Python's own library: some hundred files of all small sizes, with links and attributes."""
    source = tmp_path / "library"
    for name in ("json", "email", "encodings"):
        shutil.copytree(LIBRARY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "link").symlink_to("json/decoder.py")
    (source / "dangling").symlink_to("nowhere")
    os.link(source / "json" / "encoder.py", source / "hard")
    (source / "empty").mkdir(mode=0o700)
    (source / "large").write_bytes(content("library", 2 * MIB + 1))
    (source / "large").chmod(0o640)
    os.utime(source / "json", ns=(10**18, 10**18 + 123_456_789))
    return source


# ---- version control --------------------------------------------------------------------------------


def test_git_with_branches_and_worktrees(tools: MountedFileSystem, place: Path, library: Path) -> None:
    main, linked, clone = place / "main", place / "linked", place / "clone"
    shutil.copytree(library, main, symlinks=True)

    def git(where: Path, *words: object) -> str:
        return shell("git", "-C", where, *words).stdout

    git(main, "init", "-q", "-b", "main")
    git(main, "add", "-A")
    git(main, "commit", "-q", "-m", "first")
    for number in range(3):
        git(main, "checkout", "-q", "-b", f"branch-{number}", "main")
        (main / "json" / f"new-{number}.py").write_text(f"number = {number}\n")
        (main / "email" / "parser.py").unlink()
        git(main, "add", "-A")
        git(main, "commit", "-q", "-m", f"branch {number}")
    git(main, "checkout", "-q", "main")
    assert (main / "email" / "parser.py").exists()
    git(main, "merge", "-q", "--no-edit", "branch-0")
    git(main, "worktree", "add", "-q", linked, "branch-1")
    (linked / "json" / "new-1.py").write_text("changed\n")
    git(linked, "commit", "-q", "-a", "-m", "in the worktree")
    git(main, "gc", "-q", "--aggressive", "--prune=now")
    git(main, "fsck", "--full", "--strict")
    git(place, "clone", "-q", "--local", main, clone)  # hard links of its objects
    git(clone, "checkout", "-q", "branch-1")
    git(clone, "stash", "list")
    tools.remount()
    for where in (main, linked, clone):
        assert git(where, "status", "--porcelain") == ""
        git(where, "fsck", "--full", "--strict")
    assert git(clone, "rev-parse", "HEAD") == git(linked, "rev-parse", "HEAD")
    git(main, "worktree", "remove", linked)
    assert not linked.exists()
    assert git(main, "worktree", "list").count("\n") == 1


# ---- databases --------------------------------------------------------------------------------------

COUNTING = """
import sqlite3, sys
path, who, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
database = sqlite3.connect(path, timeout=60, isolation_level=None)
for number in range(rounds):
    database.execute("BEGIN IMMEDIATE")
    (count,) = database.execute("SELECT count FROM total").fetchone()
    database.execute("UPDATE total SET count = ?", (count + 1,))
    database.execute("INSERT INTO item VALUES (?, ?, ?)", (who, number, bytes(number * 7 % 5000)))
    database.execute("COMMIT")
"""


@pytest.mark.parametrize(("mode", "rounds"), [("delete", 15), ("wal", 40)])
def test_two_processes_in_one_sqlite_database(
    tools: MountedFileSystem, place: Path, mode: str, rounds: int
) -> None:
    path = place / "db.sqlite"
    database = sqlite3.connect(path, isolation_level=None)
    assert database.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
    database.execute("CREATE TABLE total (count INTEGER)")
    database.execute("INSERT INTO total VALUES (0)")
    database.execute("CREATE TABLE item (who TEXT, number INTEGER, body BLOB, PRIMARY KEY (who, number))")
    running = [
        subprocess.Popen([sys.executable, "-c", COUNTING, path, who, str(rounds)]) for who in ("a", "b")
    ]
    seen = 0
    while any(process.poll() is None for process in running):
        (count,) = database.execute("SELECT count FROM total").fetchone()
        assert count >= seen  # as a reader besides them sees it
        seen = count
    assert [process.wait() for process in running] == [0, 0]
    database.close()
    for _ in range(2):
        database = sqlite3.connect(path)
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count FROM total").fetchone() == (2 * rounds,)
        assert database.execute("SELECT count(*), sum(length(body)) FROM item").fetchone() == (
            2 * rounds,
            2 * sum(number * 7 % 5000 for number in range(rounds)),
        )
        database.close()
        tools.remount()


# ---- copies -----------------------------------------------------------------------------------------


def test_rsync_of_changes_inside_files(tools: MountedFileSystem, place: Path, library: Path) -> None:
    if os.getuid() == 0:
        os.chown(library / "large", 1234, 5678)
    os.setxattr(library / "large", "user.origin", b"here")
    command = ("rsync", "-aHX", "--checksum", "--delete", "--no-whole-file", f"{library}/", place / "copy")
    for inplace in ((), ("--inplace",)):
        shell(*command, *inplace)
        body = bytearray((library / "large").read_bytes())
        body[70_000:70_000] = b"some bytes more"
        (library / "large").write_bytes(body)
        (library / "json" / "encoder.py").write_text(f"changed {inplace}\n")
        shutil.rmtree(library / "empty", ignore_errors=True)
        shell(*command, *inplace)
        assert shell(*command, "--dry-run", "--itemize-changes").stdout == ""
    tools.remount()
    assert shell(*command, "--dry-run", "--itemize-changes").stdout == ""
    assert (place / "copy" / "hard").stat().st_nlink == 2
    assert not (place / "copy" / "empty").exists()


def _comparable(root: Path) -> dict[str, dict[str, object]]:
    """What `cp -a` and tar keep: everything but inode numbers, and the links of directories."""
    seen = describe_tree(root)
    for one in seen.values():
        del one["ino"]
    return seen


def test_cp_and_tar_keep_everything(tools: MountedFileSystem, place: Path, library: Path) -> None:
    os.setxattr(library / "large", "user.origin", b"here")
    os.mkfifo(library / "fifo")
    with (library / "sparse").open("wb") as file:
        file.seek(3 * MIB)
        file.write(b"behind a hole")
    expected = _comparable(library)
    shell("cp", "-a", library, place / "one")
    shell("cp", "-a", place / "one", place / "two")
    shell("cp", "-a", "--reflink=auto", "--sparse=always", place / "two", place / "three")
    shell("tar", "-C", place / "one", "--xattrs", "--sparse", "-cf", place / "all.tar", ".")
    (place / "four").mkdir()
    shell("tar", "-C", place / "four", "--xattrs", "-xpf", place / "all.tar")
    tools.remount()
    for name in ("one", "two", "three", "four"):
        assert _comparable(place / name) == expected, name
    assert (place / "three" / "sparse").stat().st_blocks < 2 * MIB // 512
    assert shell("tar", "-C", place / "four", "--compare", "-f", place / "all.tar").stdout == ""


def test_mv_across_mounts(tools: MountedFileSystem, place: Path, library: Path, tmp_path: Path) -> None:
    expected = _comparable(library)
    shell("mv", library, place / "moved")
    assert not library.exists()
    assert _comparable(place / "moved") == expected
    tools.remount()
    shell("mv", place / "moved", place / "again")
    shell("mv", place / "again", tmp_path / "back")
    assert list(place.iterdir()) == []
    assert _comparable(tmp_path / "back") == expected


# ---- building and installing ------------------------------------------------------------------------

MAKEFILE = """
objects = main.o part.o
program: $(objects)
\t$(CC) -o $@ $(objects)
%.o: %.c part.h
\t$(CC) -O1 -c -o $@ $<
clean:
\trm -f program $(objects)
"""


def test_make_of_a_c_program(tools: MountedFileSystem, place: Path) -> None:
    (place / "Makefile").write_text(MAKEFILE)
    (place / "part.h").write_text("int part(int number);\n")
    (place / "part.c").write_text('#include "part.h"\nint part(int number) { return 3 * number; }\n')
    (place / "main.c").write_text(
        '#include <stdio.h>\n#include "part.h"\nint main(void) { printf("%d\\n", part(14)); return 0; }\n'
    )
    make = ("make", "-C", place, "CC=gcc")
    shell(*make, "-j2")
    assert shell(place / "program").stdout == "42\n"
    assert "up to date" in shell(*make).stdout
    tools.remount()
    assert "up to date" in shell(*make).stdout  # times to the nanosecond, also after a remount
    assert shell(place / "program").stdout == "42\n"
    (place / "part.c").write_text('#include "part.h"\nint part(int number) { return 5 * number; }\n')
    rebuilt = shell(*make).stdout
    assert "part.c" in rebuilt
    assert "main.c" not in rebuilt
    assert shell(place / "program").stdout == "70\n"
    shell(*make, "clean")
    assert sorted(path.name for path in place.iterdir()) == ["Makefile", "main.c", "part.c", "part.h"]


def make_wheel(directory: Path) -> Path:
    """A package of one module and one command."""
    name = "gridfs_example-1.0"
    files = {
        "gridfs_example.py": "def main():\n    print('installed')\n",
        f"{name}.dist-info/METADATA": "Metadata-Version: 2.1\nName: gridfs-example\nVersion: 1.0\n",
        f"{name}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}.dist-info/entry_points.txt": "[console_scripts]\ngridfs-example = gridfs_example:main\n",
    }
    record = f"{name}.dist-info/RECORD"
    lines = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(text)}\n")
    wheel = directory / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {**files, record: "".join([*lines, f"{record},,\n"])}.items():
            archive.writestr(path, text)
    return wheel


def test_pip_installs_into_an_environment(tools: MountedFileSystem, place: Path, tmp_path: Path) -> None:
    environment = place / "venv"
    shell(sys.executable, "-m", "venv", environment)
    wheel = make_wheel(tmp_path)
    pip = (environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "-q")
    shell(*pip, "install", "--no-index", wheel)
    assert shell(environment / "bin" / "gridfs-example").stdout == "installed\n"
    tools.remount()
    assert shell(environment / "bin" / "gridfs-example").stdout == "installed\n"
    shell(*pip, "uninstall", "-y", "gridfs-example")
    assert not (environment / "bin" / "gridfs-example").exists()
    shell(*pip, "check")


# ---- editors and finders ----------------------------------------------------------------------------


def test_an_editor_saves_by_rename(tools: MountedFileSystem, place: Path) -> None:
    """As vim does it: the old file becomes the backup, the new one is written, synced and stamped."""
    path, backup, swap = place / "text", place / "text~", place / ".text.swp"
    path.write_text("version 0\n")
    path.chmod(0o640)
    os.setxattr(path, "user.kept", b"yes")
    for version in range(1, 8):
        with swap.open("wb") as file:
            file.write(b"b0VIM")
            os.fsync(file.fileno())
        before = path.stat()
        path.rename(backup)
        with path.open("x") as file:
            file.write(f"version {version}\n")
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), before.st_mode & 0o7777)
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        shutil.copystat(backup, path)
        os.utime(path)
        assert path.stat().st_ino != before.st_ino
        assert backup.read_text() == f"version {version - 1}\n"
        backup.unlink()
        swap.unlink()
        if version % 4 == 0:
            tools.kill_daemon()
            tools.mount()
        assert path.read_text() == f"version {version}\n"
    tools.remount()
    assert contents_of(place) == {"text": b"version 7\n"}
    assert path.stat().st_mode & 0o7777 == 0o640
    assert os.getxattr(path, "user.kept") == b"yes"


def test_find_by_time_size_and_links(tools: MountedFileSystem, place: Path) -> None:
    for number in range(10):
        (place / f"d{number % 3}").mkdir(exist_ok=True)
        path = place / f"d{number % 3}" / f"f{number}"
        path.write_bytes(bytes(number * 1000))
        os.utime(path, ns=(0, 10**18 + number))  # a nanosecond apart
    os.link(place / "d0" / "f0", place / "d1" / "hard")

    def found(*words: object) -> list[str]:
        return sorted(line.rpartition("/")[2] for line in shell("find", place, *words).stdout.splitlines())

    for _ in range(2):
        assert found("-type", "f", "-newer", place / "d0" / "f6") == ["f7", "f8", "f9"]
        assert found("-type", "f", "-size", "+7000c") == ["f8", "f9"]
        assert found("-samefile", place / "d0" / "f0") == ["f0", "hard"]
        assert found("-links", "2", "-type", "f") == ["f0", "hard"]
        assert found("-empty") == ["f0", "hard"]
        tools.remount()
    shell("find", place, "-type", "f", "-newer", place / "d0" / "f6", "-delete")
    assert found("-name", "f[789]") == []
    shell("find", place, "-mindepth", "1", "-delete")
    assert list(place.iterdir()) == []


# ---- load -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ("--rw=randwrite", "--bsrange=4k-64k", "--ioengine=psync", "--fsync=64"),
        ("--rw=write", "--bs=256k", "--ioengine=psync", "--direct=1"),
        ("--rw=randrw", "--bs=4k", "--ioengine=mmap"),
        ("--rw=randwrite", "--bsrange=1k-13k", "--ioengine=libaio", "--iodepth=8"),
    ],
    ids=lambda words: " ".join(words),
)
def test_fio_verifies_what_it_wrote(
    tools: MountedFileSystem, place: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    fio = ("fio", "--name=job", f"--directory={place}", "--size=8m", "--numjobs=2", *words)
    verify = ("--verify=crc32c", "--verify_fatal=1", "--randseed=7")
    shell(*fio, *verify, "--do_verify=1", cwd=tmp_path)  # it leaves its state where it runs
    if "--rw=randrw" not in words:  # whose reads cannot be told apart afterwards
        tools.remount()
        shell(*fio, *verify, "--verify_only", cwd=tmp_path)


A_FEW = "dentry dir link rename utime xattr hdd iomix"
ALL = """
access chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl file-ioctl filename flock
fpunch fstat getdent hdd inotify iomix lease link locka lockf lockofd mknod open readahead rename seek
sendfile symlink sync-file touch utime xattr
"""


@pytest.mark.parametrize("names", [A_FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])
def test_stress_ng_finds_nothing(tools: MountedFileSystem, place: Path, names: str) -> None:
    """Stressors of file systems that have to do with the mount, each for a moment, with its checks."""
    stressors = [word for name in names.split() for word in (f"--{name}", "1")]
    small = [f"--{name}-bytes=4M" for name in ("hdd", "iomix", "fallocate", "readahead", "sync-file")]
    limits = ("--sequential", "1", "--timeout", "1", "--verify", "--temp-path", place)
    done = shell("stress-ng", *stressors, *small, *limits)
    said = done.stdout + done.stderr
    assert "fail:" not in said
    assert "successful run" in said
    assert list(place.iterdir()) == []


def test_dbench(tools: MountedFileSystem, place: Path) -> None:
    done = shell("dbench", "-D", place, "-t", "4", "2")
    assert "Throughput" in done.stdout
    assert "ERROR" not in done.stdout
    tools.remount()
    shutil.rmtree(place)
