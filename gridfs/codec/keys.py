"""The key tree of a file system, its key file, and the recovery key.

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
from typing import Literal

import msgspec
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gridfs.codec.cipher import KEY_SIZE, NONCE_SIZE, open_blob, seal_blob
from storage.errors import Corrupt
from storage.format.head import SIGNATURE_SIZE, Succession, log_name

KEY_FILE_VERSION = 1
SALT_SIZE = 16
MASTERS_MAX = 64
"""Master keys in a succession: the newest record, which they are to open, is of one of the last."""

_READ = "gridfs 2026 read key"
_LOCAL = "gridfs 2026 local key"
_SIGNING = "gridfs 2026 head signing seed"
_JOURNAL = "gridfs 2026 journal key"
_METADATA = "gridfs 2026 metadata key"
_CONVERGENCE = "gridfs 2026 convergence secret"
_CHECK = "gridfs 2026 master key check"
_RECOVERY_CHECK = "gridfs 2026 recovery key check"
_RECOVERY_MASTER = "gridfs 2026 master key of a recovery key"
_RECOVERY_WRAP = "gridfs 2026 recovery wrapping key"

_RECOVERY_PREFIX = "gridfs-recovery"
_RECOVERY_CHECK_SIZE = 3
_GROUP = 7
_SCRYPT_BYTES_MAX = 1 << 30
"""Memory a key file may ask for: a changed file must not exhaust the machine."""


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
    def metadata_key(self) -> bytes:
        """Seals checkpoints."""
        return _derive(_METADATA, self.read_key)

    @property
    def convergence_secret(self) -> bytes:
        """Keys the hash that gives convergent run keys."""
        return _derive(_CONVERGENCE, self.read_key)


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
    def metadata_key(self) -> bytes:
        return self.reading.metadata_key

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
        check = _derive(_RECOVERY_CHECK, self.seed)[:_RECOVERY_CHECK_SIZE]
        letters = base64.b32encode(self.seed + check).decode().rstrip("=")
        groups = [letters[at : at + _GROUP] for at in range(0, len(letters), _GROUP)]
        return "-".join([_RECOVERY_PREFIX, *groups])

    @classmethod
    def parse(cls, text: str) -> RecoveryKey:
        """Read the printable form; case, spaces and dashes do not matter. Raises BadKeyFile."""
        letters = "".join(text.split()).replace("-", "").lower()
        letters = letters.removeprefix(_RECOVERY_PREFIX.replace("-", "")).upper()
        try:
            raw = base64.b32decode(letters + "=" * (-len(letters) % 8))
        except ValueError:
            raise BadKeyFile("this is not a recovery key: it has other letters than A-Z and 2-7") from None
        if len(raw) != KEY_SIZE + _RECOVERY_CHECK_SIZE:
            raise BadKeyFile("this is not a recovery key: letters are missing or too many")
        seed = raw[:KEY_SIZE]
        if _derive(_RECOVERY_CHECK, seed)[:_RECOVERY_CHECK_SIZE] != raw[KEY_SIZE:]:
            raise BadKeyFile("the recovery key has a typing error: its checksum does not fit")
        return cls(seed)

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


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key file: JSON with exactly these fields, byte strings as base64."""

    version: int
    method: Literal["none", "scrypt"]
    key: bytes
    """method none: master key and 4 bytes of checksum; scrypt: nonce, sealed master key, tag."""
    salt: bytes = b""
    n: int = 0
    r: int = 0
    p: int = 0


def wrap_passphrase(
    master: bytes, passphrase: bytes, salt: bytes, nonce: bytes, cost: ScryptCost | None = None
) -> bytes:
    """A key file (text) that only this passphrase opens.

    salt (16 bytes) and nonce (12) are fresh entropy. Takes the time the costs say: not for the loop.
    """
    if len(salt) != SALT_SIZE or len(nonce) != NONCE_SIZE:
        raise ValueError(f"a salt has {SALT_SIZE} bytes, a nonce {NONCE_SIZE}")
    cost = cost or ScryptCost()
    sealed = seal_blob(_stretch(passphrase, salt, cost), nonce, master, _scrypt_aad(salt, cost))
    return _encode(_KeyFile(KEY_FILE_VERSION, "scrypt", sealed, salt, cost.n, cost.r, cost.p))


def wrap_plain(master: bytes) -> bytes:
    """A key file (text) that holds the master key itself: its mode must be 0600."""
    return _encode(_KeyFile(KEY_FILE_VERSION, "none", master + _derive(_CHECK, master)[:4]))


def needs_passphrase(data: bytes) -> bool:
    """Whether `unwrap` of this key file needs a passphrase. Raises BadKeyFile."""
    return _decode(data).method == "scrypt"


def unwrap(data: bytes, passphrase: bytes | None = None) -> bytes:
    """The master key in a key file. Raises WrongKey, BadKeyFile. May take long: not for the loop."""
    file = _decode(data)
    if file.method == "none":
        master, check = file.key[:KEY_SIZE], file.key[KEY_SIZE:]
        if len(master) != KEY_SIZE or check != _derive(_CHECK, master)[:4]:
            raise BadKeyFile("the key file is damaged: its checksum does not fit")
        return master
    if passphrase is None:
        raise WrongKey("the file system's key is protected by a passphrase, and none was given")
    try:
        cost = ScryptCost(file.n, file.r, file.p)
    except ValueError as error:
        raise BadKeyFile(f"the key file is damaged: {error}") from None
    try:
        return open_blob(_stretch(passphrase, file.salt, cost), file.key, _scrypt_aad(file.salt, cost))
    except Corrupt:
        raise WrongKey("the passphrase does not open the file system's key") from None


def public_key(seed: bytes) -> bytes:
    """The Ed25519 public key (32 bytes) for a seed (32 bytes)."""
    key = Ed25519PrivateKey.from_private_bytes(seed).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def sign(seed: bytes, message: bytes) -> bytes:
    """The Ed25519 signature (64 bytes) of `message`."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def _derive(context: str, material: bytes) -> bytes:
    return blake3(material, derive_key_context=context).digest()


def _stretch(passphrase: bytes, salt: bytes, cost: ScryptCost) -> bytes:
    return Scrypt(salt=salt, length=KEY_SIZE, n=cost.n, r=cost.r, p=cost.p).derive(passphrase)


def _scrypt_aad(salt: bytes, cost: ScryptCost) -> bytes:
    return b"gridfs key file %d %d %d %d " % (KEY_FILE_VERSION, cost.n, cost.r, cost.p) + salt


def _encode(file: _KeyFile) -> bytes:
    return msgspec.json.format(msgspec.json.encode(file), indent=2) + b"\n"


def _decode(data: bytes) -> _KeyFile:
    try:
        version = msgspec.json.decode(data, type=dict[str, object]).get("version")
        if isinstance(version, int) and version != KEY_FILE_VERSION:
            raise BadKeyFile(
                f"the key file has format version {version}; this gridfs knows {KEY_FILE_VERSION}"
            )
        return msgspec.json.decode(data, type=_KeyFile)
    except msgspec.MsgspecError:
        raise BadKeyFile("the key file is damaged: it is not what gridfs wrote") from None
