"""Real servers that hang, are slow or cut off, and a client whose machine runs out of something."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import MakeFileSystem
from tests.mount.proxy import Network
from tests.mount.slow_servers import PIECE, SLOW_BYTES_PER_S, random_reads
from tests.mount.support import (
    content,
    contents_of,
    drop_pages,
    is_drained,
    sha256,
    wait_until,
    write_large,
)
from tests.processes import FileSystemShape, LocalGrid, MountedFileSystem, detach_mounts_below, run

MIB = 1 << 20


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def through(
    network: Network,
    make_file_system: MakeFileSystem,
    grid: LocalGrid,
    place: Path,
    *numbers: int,
    **options: object,
) -> MountedFileSystem:
    """A mounted file system that reaches these servers through the network's proxies."""
    made = make_file_system(grid, mount=False, **options)
    file = network.in_front_of(place, grid, numbers)
    shutil.copy(file, made.home / made.name / "servers")
    made.mount()
    return made


def test_one_of_six_hangs_and_another_is_slow(
    six: LocalGrid, make_file_system: MakeFileSystem, network: Network, short_directory: Path
) -> None:
    mounted = through(network, make_file_system, six, short_directory, 4)
    data = content("random", 48 * MIB)
    (mounted.path / "file").write_bytes(data)
    mounted.remount()
    random_reads(mounted.path / "file", data, seed=1, count=100)
    network.slow(4, SLOW_BYTES_PER_S)
    six.hang(1)
    try:
        random_reads(mounted.path / "file", data, seed=2, count=600)
        report = mounted.status()
        hedging, read = report["hedging"], report["readv"]["bytes"]
        assert read > 700 * PIECE
        assert hedging["won"] > 0
        assert hedging["bytes"] < 0.05 * read
        assert hedging["around_bytes"] > 0, "counted apart"
    finally:
        six.resume(1)


def test_with_too_few_servers_a_read_fails_with_the_path_in_the_log_and_is_right_afterwards(
    six: LocalGrid, make_file_system: MakeFileSystem
) -> None:
    mounted = make_file_system(options=("grid_timeout=3",))
    (mounted.path / "folder").mkdir()
    file = mounted.path / "folder" / "file"
    data = content("few", 3 * MIB)
    file.write_bytes(data)
    mounted.remount()
    hung = (0, 2, 5)
    for number in hung:
        six.hang(number)
    try:
        with pytest.raises(OSError, match="Input/output error") as caught:
            file.read_bytes()
        assert caught.value.errno == errno.EIO
        log = (mounted.home / mounted.name / "mount.log").read_text()
        assert "/folder/file, at byte 0: no answer from the grid for 3 s" in log
        # Others are served, and writes go on.
        (mounted.path / "other").write_bytes(data)
        assert (mounted.path / "other").read_bytes() == data
    finally:
        for number in hung:
            six.resume(number)
    assert file.read_bytes() == data
    for number in hung:
        six.kill(number)
    drop_pages(mounted.path)
    with pytest.raises(OSError, match="Input/output error"):
        file.read_bytes()
    six.up()
    assert file.read_bytes() == data
    mounted.sync()


def test_half_the_servers_cut_off_during_a_copy(
    six: LocalGrid, make_file_system: MakeFileSystem, network: Network, short_directory: Path, tmp_path: Path
) -> None:
    shape = FileSystemShape(k=2, n=6, happy=3)
    mounted = through(network, make_file_system, six, short_directory, 3, 4, 5, shape=shape)
    source = tmp_path / "source"
    source.mkdir()
    sums = {f"{index}": write_large(source / f"{index}", 12 * MIB, index) for index in range(6)}
    for index in range(3):
        shutil.copy(source / f"{index}", mounted.path)
    network.cut(3, 4, 5)
    for index in range(3, 6):
        shutil.copy(source / f"{index}", mounted.path)
    wait_until(lambda: mounted.status()["dirty_bytes"] == 0, "the data is with those that are left")
    report = mounted.status()
    assert report["missing_shares"] > 0
    assert "owed" in report["health"]
    network.heal()
    wait_until(lambda: mounted.status()["missing_shares"] == 0, "what was owed is placed by itself")
    wait_until(lambda: is_drained(mounted), "and recorded in the grid")
    report = mounted.status()
    assert report["debts"]["paid"] >= report["debts"]["packs"] > 0
    assert "owed" not in report["health"]
    assert {name: sha256(mounted.path / name) for name in sums} == sums
    # From those alone that were cut off.
    mounted.umount()
    mounted.mount()
    for number in (0, 1, 2):
        six.kill(number)
    drop_pages(mounted.path)
    assert {name: sha256(mounted.path / name) for name in sums} == sums


# ---- the client's machine


def test_a_daemon_with_64_descriptors(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    mounted = make_file_system(mount=False)
    mounted.path.mkdir()
    program = Path(sys.executable).with_name("gridfs")
    words = [program, "mount", mounted.name, mounted.path, "-o", "spool=256M,grid_timeout=3"]
    run(["prlimit", "--nofile=64:64", *words], home=mounted.home)
    limits = Path(f"/proc/{mounted.daemon_pids()[0]}/limits").read_text()
    assert any(line.split()[:4] == ["Max", "open", "files", "64"] for line in limits.splitlines())
    bodies = {f"{index}": content(index, 20_000) for index in range(300)}
    opened = []
    try:
        for name, body in bodies.items():
            opened.append((mounted.path / name).open("w+b"))
            opened[-1].write(body)
            opened[-1].flush()
        for file in opened[::50]:
            os.fsync(file.fileno())
        listed = [os.open(mounted.path, os.O_RDONLY) for _ in range(100)]
        assert all(len(os.listdir(each)) == 300 for each in listed)
        for each in listed:
            os.close(each)
        mounted.sync()
        for file, body in zip(opened, bodies.values(), strict=True):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 30_000, 0) == body
    finally:
        for file in opened:
            file.close()
    # Nothing can be stored; what the spool cannot take is an error of that write.
    six.hang(0)
    six.hang(1)
    kept: dict[str, bytes] = {}
    try:
        with pytest.raises(OSError, match=r"No space|Input/output"):  # noqa: PT012
            for index in range(30):
                body = content(("much", index), 10 * MIB)
                (mounted.path / f"much{index}").write_bytes(body)
                kept[f"much{index}"] = body
        assert kept
    finally:
        six.resume(0)
        six.resume(1)
    mounted.umount()
    mounted.mount()
    for name, body in {**bodies, **kept}.items():
        assert (mounted.path / name).read_bytes() == body, name


@pytest.mark.skipif(os.getuid() != 0, reason="a small disk is a mount of its own")
def test_a_full_client_disk(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    """Everything the client keeps lies on 64 MiB, which somebody else fills."""
    mounted = make_file_system(mount=False, options=("grid_timeout=3",))
    saved = mounted.home.with_name("saved")
    mounted.home.rename(saved)
    mounted.home.mkdir(mode=0o700)
    run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", mounted.home])
    try:
        shutil.copytree(saved, mounted.home, dirs_exist_ok=True)
        mounted.mount()
        kept = {"before": content("before", 5 * MIB)}
        (mounted.path / "before").write_bytes(kept["before"])
        mounted.sync()
        filler = mounted.home / "filler"
        fill(filler)
        failed = 0
        for index in range(40):
            name, body = f"{index}", content(index, 300_000)
            try:
                with (mounted.path / name).open("wb") as file:
                    file.write(body)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EIO):
                    raise
                failed += 1
            else:
                kept[name] = body
        assert contents_subset(mounted.path, kept)
        assert (mounted.path / "before").read_bytes() == kept["before"]
        filler.unlink()
        (mounted.path / "after").write_bytes(kept.setdefault("after", content("after", MIB)))
        wait_until(lambda: is_drained(mounted), "everything is in the grid by itself")
        assert contents_subset(mounted.path, kept)
        mounted.remount()
        assert contents_subset(mounted.path, kept)
        assert failed, "a disk with no room at all lets nothing be written"
    finally:
        mounted.tear_down()
        detach_mounts_below(mounted.home)


def fill(path: Path) -> None:
    """Take all the room that the disk of `path` has."""
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def contents_subset(root: Path, kept: dict[str, bytes]) -> bool:
    found = contents_of(root)
    return {name: found.get(name) for name in kept} == kept
