"""The key file: one master key in slots, each of which opens with a passphrase of its own, or with none.

A slot holds the whole master key, sealed under what scrypt makes of a passphrase; so slots come and go, and
neither the others nor what is sealed under the keys below the master key is touched. All entropy is handed
in. SPEC.md has the fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from gridfs.codec.cipher import KEY_SIZE, NONCE_SIZE, open_blob, seal_blob
from gridfs.codec.keys import BadKeyFile, WrongKey, master_check
from storage.errors import Corrupt

VERSION: Final = 2
VERSIONS_READ = (1, 2)
SALT_SIZE = 16
SLOTS_MAX = 16
FIRST_SLOT = "main"
_SCRYPT_BYTES_MAX = 1 << 30
"""Memory a key file may ask for: a changed file must not exhaust the machine."""

SlotName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,32}\Z")]


@dataclass(frozen=True, slots=True)
class ScryptCost:
    """How hard a passphrase is to guess; n=2**15, r=8 takes 32 MiB and some 60 ms."""

    n: int = 1 << 15
    r: int = 8
    p: int = 1

    def __post_init__(self) -> None:
        two_power = self.n > 1 and self.n & (self.n - 1) == 0
        if not two_power or not 1 <= self.r <= 64 or not 1 <= self.p <= 64:
            raise ValueError("scrypt costs out of range")
        if 128 * self.n * self.r > _SCRYPT_BYTES_MAX:
            raise ValueError("scrypt costs ask for more than 1 GiB")


class Slot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One way to the master key. Byte strings are base64 in the file."""

    name: SlotName
    method: Literal["none", "scrypt"]
    key: bytes
    """method none: master key and 4 bytes of checksum; scrypt: nonce, sealed master key, tag."""
    salt: bytes = b""
    n: int = 0
    r: int = 0
    p: int = 0

    def __repr__(self) -> str:
        return f"Slot({self.name!r}, {self.method!r})"  # a plain slot is the key itself

    def open(self, passphrase: bytes | None) -> bytes:
        """The master key. Raises WrongKey, BadKeyFile. May take long: not for the loop."""
        if self.method == "none":
            master, check = self.key[:KEY_SIZE], self.key[KEY_SIZE:]
            if len(master) != KEY_SIZE or check != master_check(master):
                raise BadKeyFile("the key file is damaged: its checksum does not fit")
            return master
        if passphrase is None:
            raise WrongKey("the file system's key is protected by a passphrase, and none was given")
        try:
            cost = ScryptCost(self.n, self.r, self.p)
        except ValueError as error:
            raise BadKeyFile(f"the key file is damaged: {error}") from None
        try:
            return open_blob(_stretch(passphrase, self.salt, cost), self.key, _scrypt_aad(self.salt, cost))
        except Corrupt:
            raise WrongKey("the passphrase does not open the file system's key") from None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: JSON with exactly these fields."""

    version: Literal[2]
    slots: Annotated[list[Slot], msgspec.Meta(min_length=1, max_length=SLOTS_MAX)]


class _First(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Version 1: one slot without a name."""

    version: Literal[1]
    method: Literal["none", "scrypt"]
    key: bytes
    salt: bytes = b""
    n: int = 0
    r: int = 0
    p: int = 0


@dataclass(frozen=True, slots=True)
class KeyFile:
    """All slots of one file system's key, in their order."""

    slots: tuple[Slot, ...]

    @classmethod
    def parse(cls, data: bytes) -> KeyFile:
        """Raises BadKeyFile."""
        try:
            version = msgspec.json.decode(data, type=dict[str, object]).get("version")
            if isinstance(version, int) and version not in VERSIONS_READ:
                raise BadKeyFile(f"the key file has format version {version}; this gridfs knows {VERSION}")
            if version == 1:
                old = msgspec.json.decode(data, type=_First)
                return cls((Slot(FIRST_SLOT, old.method, old.key, old.salt, old.n, old.r, old.p),))
            slots = msgspec.json.decode(data, type=_File).slots
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise BadKeyFile("the key file is damaged: it is not what gridfs wrote") from None
        if len({slot.name for slot in slots}) < len(slots):
            raise BadKeyFile("the key file is damaged: two slots have one name")
        return cls(tuple(slots))

    def encode(self) -> bytes:
        """The file's text."""
        return msgspec.json.format(msgspec.json.encode(_File(VERSION, list(self.slots))), indent=2) + b"\n"

    @property
    def needs_passphrase(self) -> bool:
        return all(slot.method == "scrypt" for slot in self.slots)

    def slot(self, name: str) -> Slot | None:
        return next((slot for slot in self.slots if slot.name == name), None)

    def open(self, passphrase: bytes | None = None) -> tuple[bytes, str]:
        """The master key, and the name of the slot that opened. Raises WrongKey, BadKeyFile.

        May take long, for every slot once: not for the loop.
        """
        failure: Exception | None = None
        for slot in self._by_cost():
            try:
                return slot.open(passphrase), slot.name
            except (WrongKey, BadKeyFile) as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def _by_cost(self) -> Sequence[Slot]:
        return sorted(self.slots, key=lambda slot: slot.method == "scrypt")

    def with_slot(self, slot: Slot) -> KeyFile:
        """With this slot in the place of the one of its name, or behind all. ValueError where it is full."""
        if self.slot(slot.name) is not None:
            return KeyFile(tuple(slot if other.name == slot.name else other for other in self.slots))
        if len(self.slots) >= SLOTS_MAX:
            raise ValueError(f"a key file has at most {SLOTS_MAX} slots")
        return KeyFile((*self.slots, slot))

    def without(self, name: str) -> KeyFile:
        """Without a slot. ValueError for the last one."""
        left = tuple(slot for slot in self.slots if slot.name != name)
        if not left:
            raise ValueError("the last slot cannot be removed: nothing would open the file system any more")
        return KeyFile(left)


def passphrase_slot(
    name: str, master: bytes, passphrase: bytes, salt: bytes, nonce: bytes, cost: ScryptCost | None = None
) -> Slot:
    """A slot that only this passphrase opens.

    salt (16 bytes) and nonce (12) are fresh entropy. Takes the time the costs say: not for the loop. Raises
    ValueError for a name that is none.
    """
    if len(salt) != SALT_SIZE or len(nonce) != NONCE_SIZE:
        raise ValueError(f"a salt has {SALT_SIZE} bytes, a nonce {NONCE_SIZE}")
    cost = cost or ScryptCost()
    sealed = seal_blob(_stretch(passphrase, salt, cost), nonce, master, _scrypt_aad(salt, cost))
    return Slot(check_name(name), "scrypt", sealed, salt, cost.n, cost.r, cost.p)


def plain_slot(name: str, master: bytes) -> Slot:
    """A slot that holds the master key itself: the file's mode must be 0600."""
    return Slot(check_name(name), "none", master + master_check(master))


def check_name(name: str) -> str:
    """Returns the name of a slot; ValueError for one that is none."""
    try:
        return msgspec.convert(name, SlotName)
    except msgspec.ValidationError:
        raise ValueError("a slot's name has 1 to 32 letters, digits, dots, dashes or underscores") from None


def _stretch(passphrase: bytes, salt: bytes, cost: ScryptCost) -> bytes:
    return Scrypt(salt=salt, length=KEY_SIZE, n=cost.n, r=cost.r, p=cost.p).derive(passphrase)


def _scrypt_aad(salt: bytes, cost: ScryptCost) -> bytes:
    # The number is of this text, not of the file: a slot keeps its bytes when the file gets another version.
    return b"gridfs key file 1 %d %d %d " % (cost.n, cost.r, cost.p) + salt
