"""The key tree of a file system, and the recovery key.

    recovery key  (never kept on the client)  ->  first master key; endorses successors and wraps their keys
    master key    (in the key file)  ->  local key (seals what lies on this machine), head signing seed
                                     ->  read key  ->  journal key, metadata key, convergence secret

Who holds the master key writes; a follower gets the read key only. Each arrow is BLAKE3 in its
derive_key mode under a context of its own (SPEC.md lists them). All entropy is handed in.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gridfs.codec.cipher import KEY_SIZE, open_blob, seal_blob
from storage.errors import Corrupt
from storage.format.head import SIGNATURE_SIZE, Succession, log_name

MASTERS_MAX = 64
"""Master keys in a succession: the newest record, which they are to open, is of one of the last."""

_READ = "gridfs 2026 read key"
_LOCAL = "gridfs 2026 local key"
_SIGNING = "gridfs 2026 head signing seed"
_JOURNAL = "gridfs 2026 journal key"
_CONVERGENCE = "gridfs 2026 convergence secret"
_CHECK = "gridfs 2026 master key check"
MASTER_CHECK_SIZE = 4
_RECOVERY_CHECK = "gridfs 2026 recovery key check"
_RECOVERY_MASTER = "gridfs 2026 master key of a recovery key"
_RECOVERY_WRAP = "gridfs 2026 recovery wrapping key"

_READ_CHECK = "gridfs 2026 read key check"
_FOLLOWER = "gridfs 2026 local key of a follower"

_RECOVERY_PREFIX = "gridfs-recovery"
_READ_PREFIX = "gridfs-read"
_CHECK_SIZE = 3
_GROUP = 7


class KeyFileError(Exception):
    """A file system's keys cannot be had. `str()` is one line for a person."""


class WrongKey(KeyFileError):
    """The passphrase, or the recovery key, is another one."""


class BadKeyFile(KeyFileError):
    """A key file or a printed key is damaged, incomplete, or of an unknown version."""


@dataclass(frozen=True, slots=True)
class ReadKeys:
    """What a read-only follower may hold."""

    read_key: bytes = field(repr=False)
    """32 bytes; all others follow from it."""

    @property
    def journal_key(self) -> bytes:
        """Seals head log records and journal packs (with a random salt in each record)."""
        return _derive(_JOURNAL, self.read_key)

    @property
    def convergence_secret(self) -> bytes:
        """Keys the hash that gives convergent run keys."""
        return _derive(_CONVERGENCE, self.read_key)


@dataclass(frozen=True, slots=True)
class ReadTree(ReadKeys):
    """What a follower has of one generation: it opens everything, and can sign nothing."""

    verifying_key: bytes
    """Of the head signing key, 32 bytes."""

    @property
    def local_key(self) -> bytes:
        """Seals what lies on the follower's machine."""
        return _derive(_FOLLOWER, self.read_key)


@dataclass(frozen=True, slots=True)
class ReadKey:
    """What a follower is handed: the read key, and the public keys by which it knows who writes."""

    tree: ReadTree
    first_key: bytes
    """Verifying key (32 bytes) with which the head log was created."""
    recovery_public: bytes
    """Public half of the recovery key, 32 bytes."""

    @property
    def log(self) -> bytes:
        """Name (32 bytes) of the file system's head log."""
        return log_name(self.first_key, self.recovery_public)

    def text(self) -> str:
        """The printable form: a word, then base32 with a checksum."""
        raw = self.tree.read_key + self.tree.verifying_key + self.first_key + self.recovery_public
        return _printable(_READ_PREFIX, _READ_CHECK, raw)

    @classmethod
    def parse(cls, text: str) -> ReadKey:
        """Read the printable form; case, spaces and dashes do not matter. Raises BadKeyFile."""
        raw = _parse_printable(_READ_PREFIX, _READ_CHECK, text, 4 * KEY_SIZE, "read key")
        parts = [raw[at : at + KEY_SIZE] for at in range(0, len(raw), KEY_SIZE)]
        return cls(ReadTree(parts[0], parts[1]), parts[2], parts[3])


@dataclass(frozen=True, slots=True)
class KeyTree:
    """Everything that follows from the master key."""

    master: bytes = field(repr=False)
    """32 bytes of entropy."""

    def __post_init__(self) -> None:
        if len(self.master) != KEY_SIZE:
            raise ValueError(f"a master key has {KEY_SIZE} bytes")

    @property
    def reading(self) -> ReadKeys:
        return ReadKeys(_derive(_READ, self.master))

    @property
    def read_key(self) -> bytes:
        return self.reading.read_key

    @property
    def journal_key(self) -> bytes:
        return self.reading.journal_key

    @property
    def convergence_secret(self) -> bytes:
        return self.reading.convergence_secret

    @property
    def local_key(self) -> bytes:
        """Seals pack keys in SQLite and records in the spool."""
        return _derive(_LOCAL, self.master)

    @property
    def signing_seed(self) -> bytes:
        """Ed25519 seed (32 bytes) of the first head signing key."""
        return _derive(_SIGNING, self.master)

    @property
    def verifying_key(self) -> bytes:
        """Ed25519 public key (32 bytes) for the first head signing key."""
        return public_key(self.signing_seed)


@dataclass(frozen=True, slots=True)
class RecoveryKey:
    """The key on paper: the first master key follows from it, and it alone makes successors."""

    seed: bytes = field(repr=False)
    """32 bytes of entropy: an Ed25519 seed."""

    def __post_init__(self) -> None:
        if len(self.seed) != KEY_SIZE:
            raise ValueError(f"a recovery key has {KEY_SIZE} bytes")

    @property
    def public(self) -> bytes:
        """Ed25519 public key (32 bytes), kept with the file system to verify endorsements."""
        return public_key(self.seed)

    @property
    def master(self) -> bytes:
        """The first master key (32 bytes): from the key on paper alone a file system is found and opened."""
        return _derive(_RECOVERY_MASTER, self.seed)

    def text(self) -> str:
        """The printable form: a word, then base32 with a checksum in groups of seven letters."""
        return _printable(_RECOVERY_PREFIX, _RECOVERY_CHECK, self.seed)

    @classmethod
    def parse(cls, text: str) -> RecoveryKey:
        """Read the printable form; case, spaces and dashes do not matter. Raises BadKeyFile."""
        return cls(_parse_printable(_RECOVERY_PREFIX, _RECOVERY_CHECK, text, KEY_SIZE, "recovery key"))

    @property
    def log(self) -> bytes:
        """Name (32 bytes) of the file system's head log."""
        return log_name(KeyTree(self.master).verifying_key, self.public)

    def endorse(self, generation: int, masters: Sequence[bytes], nonce: bytes) -> Succession:
        """Sign that the last of `masters` rules the head log from this generation (1, 2, ...) on.

        `masters`: the master keys of successors so far, oldest first; the succession carries the newest
        MASTERS_MAX of them, sealed for this recovery key. nonce: 12 random bytes.
        """
        wrapped = seal_blob(_derive(_RECOVERY_WRAP, self.seed), nonce, b"".join(masters[-MASTERS_MAX:]))
        verifying_key = KeyTree(masters[-1]).verifying_key
        unsigned = Succession(generation, verifying_key, wrapped, bytes(SIGNATURE_SIZE))
        return replace(unsigned, signature=sign(self.seed, unsigned.signed_bytes(self.log)))

    def masters(self, succession: Succession) -> list[bytes]:
        """The master keys that `endorse` sealed, oldest first.

        Raises WrongKey for a succession that this key did not make.
        """
        try:
            if not succession.is_endorsed(self.log, self.public):
                raise Corrupt("forged")
            plain = open_blob(_derive(_RECOVERY_WRAP, self.seed), succession.wrapped)
        except Corrupt:
            raise WrongKey("the recovery key is not the one of this file system") from None
        masters = [plain[at : at + KEY_SIZE] for at in range(0, len(plain), KEY_SIZE)]
        if not masters or KeyTree(masters[-1]).verifying_key != succession.verifying_key:
            raise WrongKey("the keys that the recovery key sealed are not those it endorsed")
        return masters


def _printable(prefix: str, context: str, raw: bytes) -> str:
    letters = base64.b32encode(raw + _derive(context, raw)[:_CHECK_SIZE]).decode().rstrip("=")
    return "-".join([prefix, *(letters[at : at + _GROUP] for at in range(0, len(letters), _GROUP))])


def _parse_printable(prefix: str, context: str, text: str, size: int, what: str) -> bytes:
    letters = "".join(text.split()).replace("-", "").lower()
    letters = letters.removeprefix(prefix.replace("-", "")).upper()
    try:
        data = base64.b32decode(letters + "=" * (-len(letters) % 8))
    except ValueError:
        raise BadKeyFile(f"this is not a {what}: it has other letters than A-Z and 2-7") from None
    if len(data) != size + _CHECK_SIZE:
        raise BadKeyFile(f"this is not a {what}: letters are missing or too many")
    if _derive(context, data[:size])[:_CHECK_SIZE] != data[size:]:
        raise BadKeyFile(f"the {what} has a typing error: its checksum does not fit")
    return data[:size]


def master_check(master: bytes) -> bytes:
    """Checksum (4 bytes) of a master key that lies in the clear."""
    return _derive(_CHECK, master)[:MASTER_CHECK_SIZE]


def public_key(seed: bytes) -> bytes:
    """The Ed25519 public key (32 bytes) for a seed (32 bytes)."""
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def sign(seed: bytes, message: bytes) -> bytes:
    """The Ed25519 signature (64 bytes) of `message`."""
    return _private_key(seed).sign(message)


@lru_cache(maxsize=4)
def _private_key(seed: bytes) -> Ed25519PrivateKey:
    """Making the key object takes as long as using it."""
    return Ed25519PrivateKey.from_private_bytes(seed)


def _derive(context: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=context).digest()
