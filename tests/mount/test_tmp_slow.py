"""Real servers that hang, are slow, or cannot be reached, and a client whose machine runs out of something."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import MakeFileSystem
from tests.mount.proxy import Network
from tests.mount.support import (
    content,
    contents_of,
    drop_pages,
    is_drained,
    sha256,
    wait_until,
    write_large,
)
from tests.processes import FileSystemShape, LocalGrid, MountedFileSystem, run

MIB = 1 << 20
PIECE = 128 << 10
SLOW_BYTES_PER_S = 1e6


@pytest.fixture(autouse=True)
def keep(request, tmp_path):
    yield
    import glob
    import shutil as sh

    for f in glob.glob(str(tmp_path) + "/*/home/test/mount.log"):
        sh.copy(f, "/tmp/wt/hedge-" + request.node.name[:14] + ".log")


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def random_reads(path: Path, data: bytes, count: int, seed: int) -> None:
    """Reads of 128 KiB at random places, none of which the kernel has in its cache."""
    generator = random.Random(seed)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for _ in range(count):
            offset = generator.randrange(len(data) - PIECE)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(descriptor, PIECE, offset) == data[offset : offset + PIECE]
    finally:
        os.close(descriptor)


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
    print(72, __import__("time").monotonic(), flush=True)
    mounted = through(network, make_file_system, six, short_directory, 4)
    print(73, __import__("time").monotonic(), flush=True)
    data = content("random", 48 * MIB)
    print(74, __import__("time").monotonic(), flush=True)
    (mounted.path / "file").write_bytes(data)
    print(75, __import__("time").monotonic(), flush=True)
    mounted.remount()
    print(76, __import__("time").monotonic(), flush=True)
    random_reads(mounted.path / "file", data, 100, seed=1)
    print(77, __import__("time").monotonic(), flush=True)
    network.slow(4, SLOW_BYTES_PER_S)
    print(78, __import__("time").monotonic(), flush=True)
    six.hang(1)
    print(79, __import__("time").monotonic(), flush=True)
    try:
        random_reads(mounted.path / "file", data, 600, seed=2)
        report = mounted.status()
        hedging, read = report["hedging"], report["readv"]["bytes"]
        assert read > 700 * PIECE
        assert hedging["won"] > 0
        assert hedging["bytes"] < 0.05 * read
        assert hedging["around_bytes"] > 0, "counted apart"
        assert sha256(mounted.path / "file")
    finally:
        six.resume(1)


def test_with_too_few_servers_a_read_fails_with_the_path_in_the_log_and_is_right_afterwards(
    six: LocalGrid, make_file_system: MakeFileSystem
) -> None:
    print(95, __import__("time").monotonic(), flush=True)
    mounted = make_file_system(options=("grid_timeout=3",))
    print(96, __import__("time").monotonic(), flush=True)
    (mounted.path / "folder").mkdir()
    print(97, __import__("time").monotonic(), flush=True)
    file = mounted.path / "folder" / "file"
    print(98, __import__("time").monotonic(), flush=True)
    data = content("few", 3 * MIB)
    print(99, __import__("time").monotonic(), flush=True)
    file.write_bytes(data)
    print(100, __import__("time").monotonic(), flush=True)
    mounted.remount()
    print(101, __import__("time").monotonic(), flush=True)
    hung = (0, 2, 5)
    print(102, __import__("time").monotonic(), flush=True)
    for number in hung:
        six.hang(number)
    print(104, __import__("time").monotonic(), flush=True)
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
    print(116, __import__("time").monotonic(), flush=True)
    assert file.read_bytes() == data
    assert not mounted.path.exists() or True
    print(117, __import__("time").monotonic(), flush=True)
    for number in hung:
        six.kill(number)
    print(119, __import__("time").monotonic(), flush=True)
    drop_pages(mounted.path)
    print(120, __import__("time").monotonic(), flush=True)
    with pytest.raises(OSError, match="Input/output error"):
        file.read_bytes()
    print(122, __import__("time").monotonic(), flush=True)
    six.up()
    print(123, __import__("time").monotonic(), flush=True)
    wait_until(lambda: is_drained(mounted), "everything is in the grid")
    print(124, __import__("time").monotonic(), flush=True)
    assert file.read_bytes() == data
    assert not mounted.path.exists() or True


def test_half_the_servers_cut_off_during_a_copy(
    six: LocalGrid, make_file_system: MakeFileSystem, network: Network, short_directory: Path, tmp_path: Path
) -> None:
    print(130, __import__("time").monotonic(), flush=True)
    shape = FileSystemShape(k=2, n=6, happy=3)
    print(131, __import__("time").monotonic(), flush=True)
    mounted = through(network, make_file_system, six, short_directory, 3, 4, 5, shape=shape)
    print(132, __import__("time").monotonic(), flush=True)
    source = tmp_path / "source"
    print(133, __import__("time").monotonic(), flush=True)
    source.mkdir()
    print(134, __import__("time").monotonic(), flush=True)
    sums = {f"{index}": write_large(source / f"{index}", 12 * MIB, index) for index in range(6)}
    print(135, __import__("time").monotonic(), flush=True)
    for index in range(3):
        shutil.copy(source / f"{index}", mounted.path)
    print(137, __import__("time").monotonic(), flush=True)
    network.cut(3, 4, 5)
    print(138, __import__("time").monotonic(), flush=True)
    for index in range(3, 6):
        shutil.copy(source / f"{index}", mounted.path)
    print(140, __import__("time").monotonic(), flush=True)
    wait_until(lambda: mounted.status()["dirty_bytes"] == 0, "the data is with those that are left")
    print(141, __import__("time").monotonic(), flush=True)
    report = mounted.status()
    print(142, __import__("time").monotonic(), flush=True)
    assert report["missing_shares"] > 0
    print(143, __import__("time").monotonic(), flush=True)
    assert "owed" in report["health"]
    print(144, __import__("time").monotonic(), flush=True)
    network.heal()
    print(145, __import__("time").monotonic(), flush=True)
    wait_until(lambda: mounted.status()["missing_shares"] == 0, "what was owed is placed by itself")
    print(146, __import__("time").monotonic(), flush=True)
    wait_until(lambda: is_drained(mounted), "and recorded in the grid")
    print(147, __import__("time").monotonic(), flush=True)
    report = mounted.status()
    print(148, __import__("time").monotonic(), flush=True)
    assert report["debts"]["paid"] >= report["debts"]["packs"] > 0
    print(149, __import__("time").monotonic(), flush=True)
    assert "owed" not in report["health"]
    print(150, __import__("time").monotonic(), flush=True)
    assert {name: sha256(mounted.path / name) for name in sums} == sums
    print(151, __import__("time").monotonic(), flush=True)
    # From those alone that were cut off.
    print(152, __import__("time").monotonic(), flush=True)
    mounted.umount()
    print(153, __import__("time").monotonic(), flush=True)
    mounted.mount()
    print(154, __import__("time").monotonic(), flush=True)
    for number in (0, 1, 2):
        six.kill(number)
    print(156, __import__("time").monotonic(), flush=True)
    drop_pages(mounted.path)
    print(157, __import__("time").monotonic(), flush=True)
    assert {name: sha256(mounted.path / name) for name in sums} == sums


# ---- the client's machine


def test_a_daemon_with_64_descriptors(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    print(164, __import__("time").monotonic(), flush=True)
    mounted = make_file_system(mount=False, options=("spool=256M",))
    print(165, __import__("time").monotonic(), flush=True)
    mounted.path.mkdir()

    print(167, __import__("time").monotonic(), flush=True)

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    print(170, __import__("time").monotonic(), flush=True)
    program = Path(os.sys.executable).with_name("gridfs")  # type: ignore[attr-defined]
    print(171, __import__("time").monotonic(), flush=True)
    run([program, "mount", mounted.name, mounted.path, "-o", "spool=256M"], home=mounted.home, preexec_fn=few)
    print(172, __import__("time").monotonic(), flush=True)
    limits = Path(f"/proc/{mounted.daemon_pids()[0]}/limits").read_text()
    print(173, __import__("time").monotonic(), flush=True)
    assert any(line.split()[:4] == ["Max", "open", "files", "64"] for line in limits.splitlines())
    print(174, __import__("time").monotonic(), flush=True)
    bodies = {f"{index}": content(index, 20_000) for index in range(300)}
    print(175, __import__("time").monotonic(), flush=True)
    opened = []
    print(176, __import__("time").monotonic(), flush=True)
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
    print(194, __import__("time").monotonic(), flush=True)
    # Writing beyond what it has descriptors for is an error of that write, if of anything.
    print(195, __import__("time").monotonic(), flush=True)
    six.hang(0)
    print(196, __import__("time").monotonic(), flush=True)
    six.hang(1)
    print(197, __import__("time").monotonic(), flush=True)
    kept: dict[str, bytes] = {}
    print(198, __import__("time").monotonic(), flush=True)
    try:
        for index in range(30):
            body = content(("much", index), 10 * MIB)
            try:
                (mounted.path / f"much{index}").write_bytes(body)
            except OSError as error:
                assert error.errno in (errno.EMFILE, errno.ENOSPC, errno.EIO)
                break
            kept[f"much{index}"] = body
    finally:
        six.resume(0)
        six.resume(1)
    print(210, __import__("time").monotonic(), flush=True)
    mounted.umount()
    print(211, __import__("time").monotonic(), flush=True)
    mounted.mount()
    print(212, __import__("time").monotonic(), flush=True)
    for name, body in {**bodies, **kept}.items():
        assert (mounted.path / name).read_bytes() == body, name


@pytest.mark.skipif(os.getuid() != 0, reason="a small disk is a mount of its own")
def test_a_full_client_disk(six: LocalGrid, make_file_system: MakeFileSystem) -> None:
    """Everything the client keeps lies on 64 MiB, which somebody else fills."""
    print(219, __import__("time").monotonic(), flush=True)
    mounted = make_file_system(mount=False, options=("grid_timeout=3",))
    print(220, __import__("time").monotonic(), flush=True)
    saved = mounted.home.with_name("saved")
    print(221, __import__("time").monotonic(), flush=True)
    mounted.home.rename(saved)
    print(222, __import__("time").monotonic(), flush=True)
    mounted.home.mkdir(mode=0o700)
    print(223, __import__("time").monotonic(), flush=True)
    run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=700", "tmpfs", mounted.home])
    print(224, __import__("time").monotonic(), flush=True)
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
                assert error.errno in (errno.ENOSPC, errno.EIO)
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
        run(["umount", mounted.home], good=(0, 32))


def fill(path: Path) -> None:
    """Take all the room that the disk of `path` has."""
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC


def contents_subset(root: Path, kept: dict[str, bytes]) -> bool:
    found = contents_of(root)
    return {name: found.get(name) for name in kept} == kept
