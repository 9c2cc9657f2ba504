"""FUSE_INIT answered by ourselves: what is taken for an INIT, and what becomes of libfuse's answer."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.fuse.initialise import (
    ADDED,
    CACHE_SYMLINKS,
    CONGESTION_THRESHOLD,
    DONT_MASK,
    HANDLE_KILLPRIV_V2,
    MAX_BACKGROUND,
    OUT_SIZE,
    InitRefused,
    amend,
    is_connected,
    is_readable,
    option,
    parse_request,
    read_request,
    write_answer,
)

OFFERED = 0x73FFFFFB
"""What a kernel of 2025 offers, about."""
UNIQUE = 0x1_0000_0002


def request_bytes(
    opcode: int = 26, major: int = 7, minor: int = 45, flags: int = OFFERED, size: int = 104
) -> bytes:
    """An INIT as the kernel sends it."""
    header = struct.pack("<IIQQIIIHH", size, opcode, UNIQUE, 0, 0, 0, 0, 0, 0)
    body = struct.pack("<IIIII", major, minor, 131072, flags, 1)
    return (header + body).ljust(size, b"\0")


def reply_bytes(
    error: int = 0, unique: int = UNIQUE, major: int = 7, minor: int = 38, flags: int = 0x1FB3, size: int = 80
) -> bytes:
    """libfuse's answer."""
    header = struct.pack("<IiQ", size, error, unique)
    body = struct.pack("<IIIIHHIIHHI", major, minor, 131072, flags, 0xFFFF, 9, 1 << 20, 1, 256, 0, 0)
    return (header + body).ljust(size, b"\0")


def test_a_request_is_kept_as_it_came() -> None:
    request = parse_request(request_bytes())
    assert (request.unique, request.minor, request.flags) == (UNIQUE, 45, OFFERED)
    assert request.data == request_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        request_bytes()[:50],
        request_bytes()[:-1],
        request_bytes() + b"\0",
        request_bytes(opcode=1),
        request_bytes(major=8),
        request_bytes(major=6),
        request_bytes(minor=30),
        request_bytes(minor=100),
        request_bytes(flags=OFFERED & ~HANDLE_KILLPRIV_V2),
        request_bytes(flags=OFFERED & ~DONT_MASK),
    ],
)
def test_another_first_request_is_refused(data: bytes) -> None:
    with pytest.raises(InitRefused):
        parse_request(data)


def test_an_answer_gets_what_the_kernel_offers_and_keeps_the_rest() -> None:
    reply = reply_bytes()
    amended = amend(parse_request(request_bytes()), reply)
    assert len(amended) == OUT_SIZE
    flags, background, threshold = struct.unpack_from("<IHH", amended, 28)
    assert flags == 0x1FB3 | ADDED
    assert (background, threshold) == (MAX_BACKGROUND, CONGESTION_THRESHOLD)
    assert amended[:28] == reply[:28]
    assert amended[36:] == reply[36:]

    flags = OFFERED & ~CACHE_SYMLINKS
    amended = amend(parse_request(request_bytes(flags=flags)), reply)
    assert struct.unpack_from("<I", amended, 28)[0] == 0x1FB3 | DONT_MASK | HANDLE_KILLPRIV_V2


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        reply_bytes()[:-1],
        reply_bytes(size=40),
        reply_bytes(size=88),
        reply_bytes(error=-71),
        reply_bytes(unique=UNIQUE + 1),
        reply_bytes(major=8),
        reply_bytes(minor=12),
        reply_bytes(flags=1 << 2),
    ],
)
def test_a_strange_answer_is_refused(reply: bytes) -> None:
    with pytest.raises(InitRefused):
        amend(parse_request(request_bytes()), reply)


@given(st.binary(max_size=200))
def test_nothing_but_a_refusal_comes_of_noise(data: bytes) -> None:
    with pytest.raises(InitRefused):
        parse_request(data)
    with pytest.raises(InitRefused):
        amend(parse_request(request_bytes()), data)


def test_a_device_is_read_and_written_once_and_told_when_it_is_gone() -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        assert not is_readable(device.fileno(), 0)
        kernel.send(request_bytes())
        assert read_request(device.fileno()).unique == UNIQUE
        write_answer(device.fileno(), b"answer")
        assert kernel.recv(100) == b"answer"
        assert is_connected(device.fileno())
        kernel.close()
        assert not is_connected(device.fileno())
        with pytest.raises(InitRefused, match="kernel refuses"):
            write_answer(device.fileno(), b"answer")
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        with pytest.raises(InitRefused, match="0 bytes"):
            read_request(null)
    finally:
        os.close(null)


def test_values_with_commas_are_escaped() -> None:
    assert option("fsname", "/a,b\\c") == "fsname=/a\\,b\\\\c"
