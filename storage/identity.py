"""Who a server is and whom it lets in: its key, its accounts, and the address it was last reached at.

All are small files in the server's directory, written once and whole. An account is one file, looked up
anew at each hello: a new account works at once, and one whose file is removed cannot connect any more.

    DIR/server.key        the Ed25519 private key, 32 bytes
    DIR/accounts/HEX      one account: a msgpack map of version, rights and secret
    DIR/address           where the server listened last, as `unix:PATH` or `tls://HOST:PORT`
"""

from __future__ import annotations

import contextlib
import os.path
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from storage.errors import Refused
from storage.ports import Address, Disk, Entropy
from storage.wire.url import ACCOUNT_SIZE, NO_ACCOUNT, RIGHTS, SECRET_SIZE, format_address, parse_listen

KEY_SIZE = 32
ACCOUNT_VERSION = 1
SHARES_DIRECTORY = "shares"
"""Where shares lie in the server's directory. They belong to its key."""
_FILE_SIZE_MAX = 8192


@dataclass(frozen=True, slots=True)
class Identity:
    """A server's key pair."""

    signing_key: bytes = field(repr=False)
    """Ed25519 private key, 32 bytes."""
    server_id: bytes
    """Ed25519 public key, 32 bytes."""

    def sign(self, message: bytes) -> bytes:
        """64 bytes."""
        return Ed25519PrivateKey.from_private_bytes(self.signing_key).sign(message)


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who may connect."""

    name: bytes
    """16 bytes."""
    rights: str
    """One of RIGHTS."""
    secret: bytes = field(repr=False)
    """32 bytes."""


class _StoredAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    rights: str
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_SIZE, max_length=SECRET_SIZE)]


def verify(server_id: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the holder of the key signed the message."""
    try:
        Ed25519PublicKey.from_public_bytes(server_id).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def load_identity(disk: Disk, directory: str) -> Identity | None:
    """The server's identity; None where it has none yet. Raises Refused for a damaged key file."""
    seed = _read(disk, _path(directory, "server.key"))
    if seed is None:
        return None
    if len(seed) != KEY_SIZE:
        raise Refused(f"{_path(directory, 'server.key')} is not a server's key: restore it from a backup")
    public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    return Identity(seed, public)


def load_or_create_identity(disk: Disk, entropy: Entropy, directory: str) -> Identity:
    """The server's identity, made where there is none. One caller at a time. Raises Refused."""
    found = load_identity(disk, directory)
    if found is not None:
        return found
    _make_directory(disk, directory)
    if SHARES_DIRECTORY in disk.names(directory):
        raise Refused(f"{directory} has shares but no server.key: restore it, a new key would orphan them")
    _write(disk, _path(directory, "server.key"), entropy.token(KEY_SIZE))
    created = load_identity(disk, directory)
    assert created is not None
    return created


def create_account(disk: Disk, entropy: Entropy, directory: str, rights: str) -> Account:
    """Make an account with a secret of its own; durable on return."""
    if rights not in RIGHTS:
        raise Refused(f"rights must be one of {', '.join(RIGHTS)}, not {rights!r}")
    account = Account(entropy.token(ACCOUNT_SIZE), rights, entropy.token(SECRET_SIZE))
    accounts = _path(directory, "accounts")
    _make_directory(disk, directory)
    _make_directory(disk, accounts)
    stored = _StoredAccount(ACCOUNT_VERSION, account.rights, account.secret)
    _write(disk, _path(accounts, account.name.hex()), msgspec.msgpack.encode(stored))
    return account


def find_account(disk: Disk, directory: str, name: bytes) -> Account | None:
    """The account of this name (16 bytes), as it is on the disk now; None where there is none."""
    if name == NO_ACCOUNT:
        return None
    content = _read(disk, _path(directory, "accounts", name.hex()))
    if content is None:
        return None
    try:
        stored = msgspec.msgpack.decode(content, type=_StoredAccount)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if stored.version != ACCOUNT_VERSION or stored.rights not in RIGHTS:
        return None
    return Account(name, stored.rights, stored.secret)


def record_address(disk: Disk, directory: str, address: Address) -> None:
    """Remember where the server listens; a disk that is full may know it already."""
    content = format_address(address).encode("utf-8", "surrogateescape")
    if _read(disk, _path(directory, "address")) != content:
        _write(disk, _path(directory, "address"), content)


def recorded_address(disk: Disk, directory: str) -> Address | None:
    """Where the server listened last; None where it never did."""
    content = _read(disk, _path(directory, "address"))
    if content is None:
        return None
    return parse_listen(content.decode("utf-8", "surrogateescape"))


def _path(*parts: str) -> str:
    return os.path.join(*parts)


def _make_directory(disk: Disk, path: str) -> None:
    """Make a directory whose name outlives a power loss, as the files in it will."""
    disk.make_directory(path)
    disk.sync_directory(os.path.dirname(path))


def _read(disk: Disk, path: str) -> bytes | None:
    try:
        file = disk.open(path, writable=False)
    except FileNotFoundError:
        return None
    try:
        buffer = bytearray(min(file.size(), _FILE_SIZE_MAX))
        count = file.read_into(memoryview(buffer), 0)
        return bytes(buffer[:count])
    finally:
        file.close()


def _write(disk: Disk, path: str, content: bytes) -> None:
    """Write beside, sync, rename: whoever looks finds the old file or the whole new one."""
    beside = path + ".new"
    with contextlib.suppress(FileNotFoundError):
        disk.remove(beside)
    file = disk.open(beside, create=True, exclusive=True)
    try:
        file.write_at([content], 0)
        file.sync()
    finally:
        file.close()
    disk.replace(beside, path)
    disk.sync_directory(os.path.dirname(path))
