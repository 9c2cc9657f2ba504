"""The master key for a command: out of the key file, with a passphrase from a command or the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from gridfs.codec.keyfile import FIRST_SLOT, KeyFile, Slot, passphrase_slot, plain_slot
from gridfs.codec.keys import BadKeyFile, WrongKey
from gridfs.config import Config
from gridfs.exits import FAILED, CommandError
from gridfs.host.home import Home
from gridfs.host.passphrase import from_command, from_terminal
from storage.ports import Entropy

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Unlocked:
    """A key file that was opened."""

    file: KeyFile
    master: bytes = field(repr=False)
    slot: str
    """Name of the slot that opened."""


def unlock(home: Home, config: Config) -> Unlocked:
    """Open a file system's key. Raises WrongKey, BadKeyFile, CommandError where there is only a read key."""
    file = read_key_file(home)
    passphrase: bytes | None = None
    if file.needs_passphrase:
        if config.passphrase_command:
            passphrase = from_command(config.passphrase_command)
        else:
            passphrase = from_terminal(f"Passphrase for {home.folder}: ")
        if passphrase is None:
            raise WrongKey(
                f"{home.folder} needs a passphrase: do it on a terminal, or set passphrase_command in "
                f"{home.config_path}"
            )
    return Unlocked(file, *file.open(passphrase))


def read_key_file(home: Home) -> KeyFile:
    """Raises BadKeyFile, CommandError where there is only a read key."""
    if home.is_follower:
        raise CommandError(f"{home.folder} is only read on this machine, which has no other key", FAILED)
    return KeyFile.parse(home.key_path.read_bytes())


def read_printed(path: Path, parse: Callable[[str], T]) -> T:
    """The printed key in a file, by `RecoveryKey.parse` or `ReadKey.parse`. Raises WrongKey."""
    try:
        return parse(path.read_text(errors="replace"))
    except BadKeyFile as error:
        raise WrongKey(f"{path}: {error}") from None


def new_slot(name: str, master: bytes, command: str, entropy: Entropy) -> Slot | None:
    """A slot for a new passphrase, of a command or asked for twice; None without terminal and command.

    Raises WrongKey where the command fails, CommandError where the two differ or are empty, ValueError for a
    name that is none.
    """
    passphrase = from_command(command) if command else from_terminal("New passphrase: ")
    if passphrase is None:
        return None
    if not passphrase:
        raise CommandError("an empty passphrase protects nothing", FAILED)
    if not command and from_terminal("Again: ") != passphrase:
        raise CommandError("the two passphrases differ", FAILED)
    return passphrase_slot(name, master, passphrase, entropy.token(16), entropy.token(12))


def protect(master: bytes, command: str, entropy: Entropy) -> tuple[bytes, str]:
    """A new file system's key file, and how it is protected, in words."""
    slot = new_slot(FIRST_SLOT, master, command, entropy)
    if slot is None:
        plain = KeyFile((plain_slot(FIRST_SLOT, master),)).encode()
        return plain, "no passphrase: the master key lies in the file `key`, mode 0600"
    return KeyFile((slot,)).encode(), "protected by the passphrase"
