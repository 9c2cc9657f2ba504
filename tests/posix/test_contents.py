"""read, write, truncate and what they leave: zeros in holes, ends of files, offsets, vectors, mappings."""

from __future__ import annotations

import errno
import mmap
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.posix.calls import Answer, each, fallocate, get, handle, in_child, outcome, put, tree, write_all
from tests.posix.stage import case

PAGE = 4096
SEGMENT = 65536
EDGES = [0, 1, PAGE - 1, PAGE, PAGE + 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 17]


def pattern(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def settle(name: str = "file") -> None:
    """Make the kernel ask again: what it holds is dropped, after it was written."""
    with handle(name, os.O_RDWR) as file:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


# ---- truncate and holes -----------------------------------------------------------------------------


@case
@pytest.mark.parametrize("second", EDGES[2:])
@pytest.mark.parametrize("first", EDGES[:-2])
def test_cut_then_extended(first: int, second: int) -> Answer:
    """What was cut off never comes back."""
    put("file", pattern(2 * SEGMENT))
    os.truncate("file", first)
    os.truncate("file", second)
    seen = get("file")
    assert seen == (pattern(2 * SEGMENT)[:first] + bytes(4 * SEGMENT))[:second] or first > 2 * SEGMENT
    settle()
    return seen == get("file"), seen


@case
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("size", EDGES[:-1])
def test_write_behind_the_end(size: int, stored: bool) -> Answer:
    put("file", pattern(100))
    if stored:
        settle()
    with handle("file", os.O_RDWR) as file:
        os.ftruncate(file, 50)
        os.pwrite(file, b"END", 200 + size)
        if stored:
            os.fsync(file)
    settle()
    seen = get("file")
    assert seen == pattern(100)[:50] + bytes(150 + size) + b"END"
    return seen


@case
@pytest.mark.parametrize("low", [0, 10, PAGE, SEGMENT - 5])
def test_truncate_through_a_handle_that_writes(low: int) -> Answer:
    with handle("file", os.O_RDWR | os.O_CREAT) as file:
        os.write(file, pattern(SEGMENT + 100))
        os.ftruncate(file, low)
        position = os.lseek(file, 0, os.SEEK_CUR)
        os.write(file, b"more")
        said = os.fstat(file).st_size, position
    return said, get("file")


@case
@pytest.mark.parametrize("length", [-1, 0, (1 << 63) - 1])
def test_lengths_at_the_limits(length: int) -> Answer:
    put("file")
    said = outcome(os.truncate, "file", length)
    return said if length <= 0 else said in ("EFBIG", "EINVAL"), os.stat("file").st_size


@case
@pytest.mark.parametrize("seed", range(8))
def test_a_random_story_of_one_file(seed: int) -> Answer:
    chance = random.Random(seed)
    with handle("file", os.O_RDWR | os.O_CREAT) as file:
        for _ in range(60):
            match chance.randrange(6):
                case 0:
                    os.ftruncate(file, chance.choice([*EDGES, chance.randrange(3 * SEGMENT)]))
                case 1:
                    os.fsync(file)
                case 2:
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                case _:
                    start = chance.choice([*EDGES, chance.randrange(3 * SEGMENT)])
                    os.pwrite(file, chance.randbytes(chance.randrange(1, SEGMENT)), start)
    first = get("file")
    settle()
    return first == get("file"), first


# ---- offsets and large files ------------------------------------------------------------------------

TIB = 1 << 40
OFFSETS = {
    "2G-1": (1 << 31) - 1,
    "2G": 1 << 31,
    "4G-1": (1 << 32) - 1,
    "4G": 1 << 32,
    "1T": TIB,
    "15T": 15 * TIB,
    "16T-1": 16 * TIB - 1,
    "16T": 16 * TIB,
}


@case(reference="tmpfs")
@pytest.mark.parametrize("offset", OFFSETS)
def test_far_out(offset: str) -> Answer:
    at = OFFSETS[offset]
    with handle("file", os.O_RDWR | os.O_CREAT) as file:
        said = [os.pwrite(file, b"far out", at), os.fstat(file).st_size]
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        said += [os.pread(file, 20, at - 5), os.pread(file, 10, 1000), os.lseek(file, 0, os.SEEK_END)]
        said += [os.write(file, b"!"), os.lseek(file, 0, os.SEEK_CUR)]
        os.ftruncate(file, at + 3)
        os.ftruncate(file, at + 100)
        said += [os.pread(file, 20, at - 2), os.fstat(file).st_size, os.fstat(file).st_blocks < 1000]
    return said


@case(reference="tmpfs")
@pytest.mark.parametrize("size", OFFSETS)
def test_a_large_empty_file(size: str) -> Answer:
    put("file", b"begin")
    os.truncate("file", OFFSETS[size])
    with handle("file", os.O_RDWR) as file:
        said = [
            os.fstat(file).st_size,
            os.pread(file, 10, OFFSETS[size] - 4),
            os.fstat(file).st_blocks < 1000,
        ]
        os.ftruncate(file, 3)
        said += [os.pread(file, 10, 0), os.fstat(file).st_size]
    return said


@case(reference="tmpfs")
def test_negative_and_endless_offsets() -> Answer:
    put("file")
    with handle("file", os.O_RDWR) as file:
        return each(
            {
                "pread": lambda: os.pread(file, 1, -1),
                "pwrite": lambda: os.pwrite(file, b"x", -1),
                "seek": lambda: os.lseek(file, -1, os.SEEK_SET),
                "seek-back": lambda: os.lseek(file, -100, os.SEEK_CUR),
                "seek-odd": lambda: os.lseek(file, 0, 77),
                "read-far": lambda: os.pread(file, 10, 1 << 60),
                "seek-far": lambda: os.lseek(file, 1 << 60, os.SEEK_SET),
                "seek-end": lambda: os.lseek(file, 5, os.SEEK_END),
                "write-last": lambda: os.pwrite(file, b"xx", (1 << 63) - 1) in ("EFBIG", "EINVAL"),
            }
        )


@case
def test_file_size_limit_of_the_process() -> Answer:
    import resource
    import signal

    put("file", b"0123456789")

    def limited() -> Any:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        with handle("file", os.O_RDWR) as file:
            return (
                outcome(os.pwrite, file, b"x" * 15, 10),
                outcome(os.pwrite, file, b"x", 20),
                outcome(os.ftruncate, file, 21),
                outcome(os.ftruncate, file, 20),
            )

    return in_child(limited), tree()


# ---- holes and blocks -------------------------------------------------------------------------------


def blocks(name: str = "file") -> int:
    return os.stat(name).st_blocks * 512


@case
@pytest.mark.parametrize("data", ["random", "zeros"])
@pytest.mark.parametrize("size", [PAGE, SEGMENT, 5 * SEGMENT, 1 << 20])
def test_written_bytes_are_counted_in_blocks(size: int, data: str) -> Answer:
    """Zeros too: a program wrote them."""
    put("file", pattern(size) if data == "random" else bytes(size))
    first = blocks()
    settle()
    return first, blocks()


@case
@pytest.mark.parametrize("synced", [True, False])
def test_holes_are_not_counted_in_blocks(synced: bool) -> Answer:
    with handle("file", os.O_RDWR | os.O_CREAT) as file:
        os.ftruncate(file, 1 << 30)
        first = blocks()
        os.pwrite(file, pattern(SEGMENT), 100 * SEGMENT)
        if synced:
            os.fsync(file)
    settle()
    second = blocks()
    os.truncate("file", 50 * SEGMENT)
    third = blocks()
    os.truncate("file", 0)
    return first, second, third, blocks()


@case
def test_overwriting_takes_no_more_blocks() -> Answer:
    put("file", pattern(4 * SEGMENT))
    said = []
    for seed in range(3):
        with handle("file", os.O_RDWR) as file:
            os.pwrite(file, pattern(2 * SEGMENT, seed), SEGMENT)
            os.fsync(file)
        said.append(blocks())
    return said


@case
def test_du_and_sparse_copies() -> Answer:
    import subprocess

    with handle("sparse", os.O_RDWR | os.O_CREAT) as file:
        os.pwrite(file, pattern(SEGMENT), 1 << 20)
        os.ftruncate(file, 4 << 20)
    put("dense", bytes(1 << 20))
    settle("sparse")
    settle("dense")

    def shell(*words: str) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    shell("cp", "--sparse=always", "dense", "made-sparse")
    shell("cp", "--sparse=never", "sparse", "made-dense")
    shell("cp", "--sparse=always", "sparse", "again")
    for name in ("made-sparse", "made-dense", "again"):
        settle(name)
    names = ("sparse", "dense", "made-sparse", "made-dense", "again")
    apparent = shell("du", "--apparent-size", "--block-size=1", *names)
    return shell("du", "--block-size=1", *names), apparent, get("again") == get("sparse")


@case
@pytest.mark.parametrize("whence", ["SEEK_DATA", "SEEK_HOLE"])
@pytest.mark.parametrize("offset", [0, 1, 99_999, 100_000, 100_001, 1 << 40])
@pytest.mark.parametrize("shape", ["dense", "empty"])
def test_seek_data_and_hole_of_files_without_holes(shape: str, offset: int, whence: str) -> Answer:
    put("file", pattern(100_000) if shape == "dense" else b"")
    with handle("file", os.O_RDWR) as file:
        return outcome(os.lseek, file, offset, getattr(os, whence)), os.lseek(file, 0, os.SEEK_CUR)


@case
def test_seek_data_and_hole_of_a_sparse_file() -> Answer:
    with handle("file", os.O_RDWR | os.O_CREAT) as file:
        os.pwrite(file, pattern(SEGMENT), 4 * SEGMENT)
        os.ftruncate(file, 8 * SEGMENT)
        os.fsync(file)
        return [outcome(os.lseek, file, 0, whence) for whence in (os.SEEK_DATA, os.SEEK_HOLE)]


@case
@pytest.mark.parametrize(("offset", "length"), [(0, 1), (0, 100_000), (50_000, 50_000), (200_000, 10)])
def test_posix_fallocate(offset: int, length: int) -> Answer:
    """glibc writes where the file system does not allocate."""
    put("file", pattern(60_000))
    with handle("file", os.O_RDWR) as file:
        said = outcome(os.posix_fallocate, file, offset, length), os.fstat(file).st_size
    return said, get("file")


@case
def test_posix_fallocate_of_a_handle_that_appends() -> Answer:
    put("file", b"content")
    with handle("file", os.O_RDWR | os.O_APPEND) as file:
        return outcome(os.posix_fallocate, file, 0, 100), os.fstat(file).st_size


@case
@pytest.mark.parametrize(("offset", "length"), [(0, 0), (-1, 10), (0, -1)])
def test_posix_fallocate_of_nonsense(offset: int, length: int) -> Answer:
    put("file")
    with handle("file", os.O_RDWR) as file:
        return outcome(os.posix_fallocate, file, offset, length), os.fstat(file).st_size


@case
@pytest.mark.parametrize("mode", ["allocate", "keep-size", "punch-hole", "zero-range"])
def test_fallocate(mode: str) -> Answer:
    put("file", pattern(60_000))
    flags = {"allocate": 0, "keep-size": 1, "punch-hole": 3, "zero-range": 16}[mode]
    with handle("file", os.O_RDWR) as file:
        return outcome(fallocate, file, flags, 4096, 8192)


# ---- ways to read and write -------------------------------------------------------------------------


@case
def test_vectors() -> Answer:
    with handle("file", os.O_RDWR | os.O_CREAT) as file:
        said: list[Any] = [os.writev(file, [b"one", b"", b"three", b"x" * 5000])]
        said.append(os.pwritev(file, [b"AB", b"CD"], 1))
        os.lseek(file, 0, os.SEEK_SET)
        buffers = [bytearray(2), bytearray(0), bytearray(7), bytearray(10_000)]
        said.append(os.readv(file, buffers))
        said.append([bytes(buffer).rstrip(b"\0") for buffer in buffers])
        said.append(os.preadv(file, [bytearray(3), bytearray(3)], 5003))
        said.append(os.lseek(file, 0, os.SEEK_CUR))
    return said


READ_FLAGS = {"none": 0, "hipri": os.RWF_HIPRI, "unknown": 1 << 30}
WRITE_FLAGS = {
    "none": 0,
    "dsync": os.RWF_DSYNC,
    "sync": os.RWF_SYNC,
    "append": os.RWF_APPEND,
    "hipri": os.RWF_HIPRI,
    "unknown": 1 << 30,
}


@case
@pytest.mark.parametrize("flag", READ_FLAGS)
def test_preadv2(flag: str) -> Answer:
    put("file", pattern(10_000))
    buffer = bytearray(3000)
    with handle("file", os.O_RDONLY) as file:
        said = outcome(os.preadv, file, [buffer], 8000, READ_FLAGS[flag])
    return said, bytes(buffer)


@case
def test_preadv2_without_waiting() -> Answer:
    """What is not in memory is refused, never waited for."""
    put("file", pattern(10_000))
    buffer = bytearray(5000)
    with handle("file", os.O_RDONLY) as file:
        os.pread(file, 10_000, 0)
        said = outcome(os.preadv, file, [buffer], 0, os.RWF_NOWAIT)
    return said in (5000, "EAGAIN", "ENOTSUP")


@case
@pytest.mark.parametrize("flag", WRITE_FLAGS)
def test_pwritev2(flag: str) -> Answer:
    put("file", b"0123456789")
    with handle("file", os.O_RDWR) as file:
        said = outcome(os.pwritev, file, [b"AB", b"C"], 4, WRITE_FLAGS[flag])
    return said, get("file")


@case
@pytest.mark.parametrize("size", [0, 1, PAGE, 3 * SEGMENT + 5])
def test_sendfile_out_and_in(size: int) -> Answer:
    put("file", pattern(size))
    with handle("file", os.O_RDONLY) as source, handle("copy", os.O_RDWR | os.O_CREAT) as target:
        said, at = [], 0
        while sent := os.sendfile(target, source, at, SEGMENT * 10):
            at += sent
        said.append(at)
        said.append(os.lseek(source, 0, os.SEEK_CUR))
    return said, get("copy") == pattern(size)


@case
def test_splice_through_a_pipe() -> Answer:
    put("file", pattern(3 * SEGMENT))
    reading, writing = os.pipe()
    moved = 0
    with handle("file", os.O_RDONLY) as source, handle("copy", os.O_RDWR | os.O_CREAT) as target:
        while got := os.splice(source, writing, 16_384):
            while got:
                put_in = os.splice(reading, target, got)
                got -= put_in
                moved += put_in
        said = outcome(os.splice, source, target, 10)
    os.close(reading)
    os.close(writing)
    return moved, said, get("copy") == pattern(3 * SEGMENT)


@case
@pytest.mark.parametrize(
    ("length", "source_at", "target_at"),
    [(100, 0, 0), (200_000, 0, 0), (1000, 500, 9000), (1000, 99_500, 0), (10, 200_000, 0), (0, 0, 0)],
)
def test_copy_file_range(length: int, source_at: int, target_at: int) -> Answer:
    put("file", pattern(100_000))
    put("copy", b"old content")
    with handle("file", os.O_RDONLY) as source, handle("copy", os.O_RDWR) as target:
        done = 0
        while done < length:
            got = os.copy_file_range(source, target, length - done, source_at + done, target_at + done)
            if not got:
                break
            done += got
    return done, get("copy")


COPIES: dict[str, Callable[[int, int], Any]] = {
    "overlapping": lambda file, other: os.copy_file_range(file, file, 100, 0, 50),
    "within": lambda file, other: os.copy_file_range(file, file, 100, 0, 500),
    "to-read-only": lambda file, other: os.copy_file_range(file, other, 100),
    "from-directory": lambda file, other: _copy_from_directory(file),
}


def _copy_from_directory(file: int) -> Any:
    with handle(".", os.O_RDONLY) as directory:
        return os.copy_file_range(directory, file, 10)


@case
@pytest.mark.parametrize("copy", COPIES)
def test_odd_copy_file_range(copy: str) -> Answer:
    put("file", pattern(1000))
    put("other", b"")
    with handle("file", os.O_RDWR) as file, handle("other", os.O_RDONLY) as other:
        return outcome(COPIES[copy], file, other), get("file")


@case
def test_append_handles_take_no_copy_file_range() -> Answer:
    put("file", pattern(1000))
    with (
        handle("file", os.O_RDONLY) as source,
        handle("copy", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as copy,
    ):
        return outcome(os.copy_file_range, source, copy, 10)


@case
@pytest.mark.parametrize("size", [0, 5, PAGE, 100_000])
def test_reads_at_the_end(size: int) -> Answer:
    put("file", pattern(size))
    with handle("file", os.O_RDONLY) as file:
        return [os.pread(file, 10, at) for at in (max(0, size - 3), size, size + 1, size + 100_000)]


@case
def test_two_handles_have_two_positions_and_a_dup_has_none_of_its_own() -> Answer:
    put("file", b"0123456789")
    with handle("file", os.O_RDWR) as one, handle("file", os.O_RDWR) as two:
        twin = os.dup(one)
        said = [os.read(one, 3), os.read(two, 2), os.read(twin, 2), os.lseek(one, 0, os.SEEK_CUR)]
        os.write(two, b"XY")
        said.append(os.read(one, 10))
        os.close(twin)
    return said, get("file")


@case
def test_a_child_shares_the_position() -> Answer:
    put("file", b"0123456789")
    with handle("file", os.O_RDWR) as file:
        said = in_child(lambda: os.read(file, 4))
        return said, os.read(file, 4)


# ---- mappings ---------------------------------------------------------------------------------------


@case
@pytest.mark.parametrize("flush", ["msync", "munmap", "fsync", "nothing"])
def test_shared_mapping(flush: str) -> Answer:
    put("file", pattern(3 * SEGMENT))
    with handle("file", os.O_RDWR) as file, mmap.mmap(file, 3 * SEGMENT) as memory:
        memory[10:20] = b"0123456789"
        memory[SEGMENT - 2 : SEGMENT + 2] = b"edge"
        if flush == "msync":
            memory.flush()
        elif flush == "munmap":
            memory.close()
        elif flush == "fsync":
            os.fsync(file)
        by_read = os.pread(file, 3 * SEGMENT, 0)
    settle()
    return by_read == get("file"), by_read


@case
def test_a_mapping_sees_writes_and_its_writes_are_seen() -> Answer:
    put("file", bytes(2 * PAGE))
    with handle("file", os.O_RDWR) as file, mmap.mmap(file, 2 * PAGE) as memory:
        os.pwrite(file, b"written", PAGE - 3)
        said = [memory[PAGE - 3 : PAGE + 4]]
        memory[0:6] = b"mapped"
        said.append(os.pread(file, 6, 0))
        with handle("file", os.O_RDONLY) as other:
            said.append(os.pread(other, 6, 0))
    return said


@case
def test_private_mapping_keeps_to_itself() -> Answer:
    put("file", b"content " * 1000)
    with handle("file", os.O_RDONLY) as file, mmap.mmap(file, 0, access=mmap.ACCESS_COPY) as memory:
        memory[0:7] = b"changed"
        said = memory[0:10]
    return said, get("file")[:10]


@case
def test_a_mapping_behind_the_end_of_its_file() -> Answer:
    """Zeros up to the end of the page, and what is written there is not in the file."""
    put("file", b"short")
    with handle("file", os.O_RDWR) as file, mmap.mmap(file, 5) as memory:
        memory.resize(5)
        memory.flush()
    os.truncate("file", 100)
    with handle("file", os.O_RDWR) as file, mmap.mmap(file, 100) as memory:
        said = memory[:]
        memory[50:55] = b"later"
        os.ftruncate(file, 52)
        os.ftruncate(file, 80)
    return said, get("file")


@case
def test_a_mapping_outlives_handle_and_name() -> Answer:
    put("file", pattern(SEGMENT))
    with handle("file", os.O_RDWR) as file:
        memory = mmap.mmap(file, SEGMENT)
    os.unlink("file")
    memory[0:3] = b"new"
    memory.flush()
    said = memory[:6]
    memory.close()
    return said, os.listdir()


MAPPINGS = {
    "read-of-write-only": (os.O_WRONLY, mmap.MAP_SHARED, mmap.PROT_READ),
    "write-of-read-only": (os.O_RDONLY, mmap.MAP_SHARED, mmap.PROT_WRITE),
    "private-write-of-read-only": (os.O_RDONLY, mmap.MAP_PRIVATE, mmap.PROT_WRITE),
    "append": (os.O_RDWR | os.O_APPEND, mmap.MAP_SHARED, mmap.PROT_WRITE),
    "exec": (os.O_RDONLY, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC),
}


@case
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_what_may_be_mapped(mapping: str) -> Answer:
    flags, kind, protection = MAPPINGS[mapping]
    put("file", pattern(PAGE))
    with handle("file", flags) as file:
        try:
            mmap.mmap(file, PAGE, flags=kind, prot=protection).close()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return "ok"


@case
def test_two_processes_share_a_mapping() -> Answer:
    put("file", bytes(PAGE))
    with handle("file", os.O_RDWR) as file, mmap.mmap(file, PAGE) as memory:

        def child() -> str:
            memory[10:15] = b"child"
            return "done"

        return in_child(child), memory[8:17], os.pread(file, 9, 8)


@case
def test_a_large_write_in_one_call() -> Answer:
    data = pattern(5 << 20)
    with handle("file", os.O_RDWR | os.O_CREAT) as file:
        write_all(file, data)
        said = os.pread(file, len(data), 0) == data
    settle()
    return said, get("file") == data
