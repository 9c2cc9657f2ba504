"""FUSE_INIT, answered by ourselves: what libfuse would agree with the kernel, and a little more.

The first request on a new mount, INIT, settles what the kernel asks for the whole life of the mount, and
pyfuse3 lets nobody speak up there. So the device is opened here (fusermount3 mounts and hands it over, to
root and to anybody else), INIT is read from it and played to libfuse over a socket pair that stands in
for the device (`/dev/fd/N`). libfuse's own answer gets the flags of `ADDED` and goes to the kernel; then
the real device takes the socket's number. libfuse never learns of the flags, and none of them changes the
shape of a request:

- HANDLE_KILLPRIV_V2: the kernel no longer asks for `security.capability` before each write; clearing
  the set-user-ID and set-group-ID bits becomes our work (`setid`).
- DONT_MASK: modes come with the umask beside them and not applied, as default ACLs need it.
- CACHE_SYMLINKS: targets are kept by the kernel; they never change.

Whoever unmounts such a mount is the session: libfuse knows no mount point.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
from dataclasses import dataclass

MAJOR = 7
MINOR_MIN, MINOR_MAX = 31, 99
"""Kernel protocol versions whose INIT is known here. From 31 on it has looked the same: the kernel adds
fields at the end, and announces them by flags that libfuse must ask for."""
OPCODE_INIT = 26

DONT_MASK = 1 << 6
CACHE_SYMLINKS = 1 << 23
HANDLE_KILLPRIV_V2 = 1 << 28
REQUIRED = HANDLE_KILLPRIV_V2 | DONT_MASK
"""Without these there is no point in answering."""
ADDED = REQUIRED | CACHE_SYMLINKS

MAX_BACKGROUND = 16
"""Requests of read-ahead and write-back that the kernel has under way at a time (12 without a word)."""
CONGESTION_THRESHOLD = 12

ANSWER_S_MAX = 5.0
READ_BYTES = 1 << 17
"""The kernel refuses reads with less room than its largest request's header needs."""

_IN_HEADER = struct.Struct("<IIQQIIIHxx")
_INIT_IN = struct.Struct("<IIII")
_OUT_HEADER = struct.Struct("<IiQ")
_INIT_OUT = struct.Struct("<IIIIHHI")
OUT_SIZE = _OUT_HEADER.size + 64
"""Bytes of an answer since protocol 7.23, header included."""
assert _IN_HEADER.size == 40
assert _OUT_HEADER.size == 16


class InitRefused(Exception):
    """Something is not as expected here: libfuse is to mount and initialise by itself."""


@dataclass(frozen=True, slots=True)
class InitRequest:
    """What the kernel said first."""

    data: bytes
    """The whole request as it came."""
    unique: int
    """The request's number, which the answer repeats."""
    minor: int
    flags: int
    """What the kernel can do; the lower 32 of them."""


def parse_request(data: bytes) -> InitRequest:
    """Raises InitRefused for anything but an INIT of a known version that offers what is REQUIRED."""
    if len(data) < _IN_HEADER.size + _INIT_IN.size:
        raise InitRefused(f"the first request has {len(data)} bytes")
    length, opcode, unique, *_ = _IN_HEADER.unpack_from(data)
    if length != len(data) or opcode != OPCODE_INIT:
        raise InitRefused(f"the first request is {opcode} of {length} bytes and not INIT")
    major, minor, _, flags = _INIT_IN.unpack_from(data, _IN_HEADER.size)
    if major != MAJOR or not MINOR_MIN <= minor <= MINOR_MAX:
        raise InitRefused(f"the kernel speaks FUSE {major}.{minor}")
    if flags & REQUIRED != REQUIRED:
        raise InitRefused(f"the kernel offers {flags:#x}, without HANDLE_KILLPRIV_V2 or DONT_MASK")
    return InitRequest(data, unique, minor, flags)


def amend(request: InitRequest, reply: bytes) -> bytes:
    """libfuse's answer with ADDED, as far as the kernel offers it. Raises InitRefused for a strange one."""
    if len(reply) != OUT_SIZE:
        raise InitRefused(f"libfuse answers INIT with {len(reply)} bytes")
    length, error, unique = _OUT_HEADER.unpack_from(reply)
    if length != len(reply) or error or unique != request.unique:
        raise InitRefused(f"libfuse answers INIT {request.unique} with error {error} for {unique}")
    major, minor, readahead, flags, _, _, max_write = _INIT_OUT.unpack_from(reply, _OUT_HEADER.size)
    if major != MAJOR or minor < MINOR_MIN or flags & ~request.flags:
        raise InitRefused(f"libfuse speaks FUSE {major}.{minor} and wants {flags:#x}")
    amended = bytearray(reply)
    _INIT_OUT.pack_into(
        amended, _OUT_HEADER.size, major, minor, readahead, flags | ADDED & request.flags,
        MAX_BACKGROUND, CONGESTION_THRESHOLD, max_write,
    )  # fmt: skip
    return bytes(amended)


def option(name: str, value: str) -> str:
    """A mount option whose value may have a comma or a backslash in it (fsname and subtype only)."""
    return f"{name}={value}".replace("\\", "\\\\").replace(",", "\\,")


def mount(mountpoint: str, options: list[str]) -> int:
    """Mount through fusermount3; returns the device's descriptor. Raises InitRefused with its reason."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", ",".join(options), "--", mountpoint],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        except OSError as error:
            raise InitRefused(f"fusermount3 cannot be run: {error.strerror}") from None
        theirs.close()
        if done.returncode:
            raise InitRefused(" ".join(done.stderr.split()) or f"fusermount3 ended with {done.returncode}")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if len(descriptors) != 1:
        raise InitRefused("fusermount3 mounted and handed over no device")
    return descriptors[0]


def read_request(device: int) -> InitRequest:
    """The kernel's INIT, which is there as soon as the mount is. Raises InitRefused."""
    if not is_readable(device, ANSWER_S_MAX):
        raise InitRefused(f"the kernel sent no INIT within {ANSWER_S_MAX:g} s")
    try:
        return parse_request(os.read(device, READ_BYTES))
    except OSError as error:
        raise InitRefused(f"INIT cannot be read: {error.strerror}") from None


def write_answer(device: int, answer: bytes) -> None:
    """From here on the mount serves. Raises InitRefused where the kernel does not take it."""
    try:
        os.write(device, answer)
    except OSError as error:
        raise InitRefused(f"the kernel refuses our answer to INIT: {error.strerror}") from None


def is_readable(device: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(device, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(timeout_s * 1000))


def is_connected(device: int) -> bool:
    """Whether the device still belongs to a mount: it fails for good once that is gone."""
    poll = select.poll()
    poll.register(device, 0)
    return not poll.poll(0)
