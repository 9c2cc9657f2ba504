"""`gridfs key`: which passphrases open a file system, and whether a recovery key is its own."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from gridfs.cli.unlock import Unlocked, new_slot, read_key_file, read_printed, unlock
from gridfs.codec.keyfile import KeyFile, check_name
from gridfs.codec.keys import RecoveryKey, WrongKey
from gridfs.exits import FAILED, USAGE, CommandError
from gridfs.host.home import Home, one_at_a_time, replace_private
from storage.system import system_machine

METHODS = {"none": "no passphrase", "scrypt": "passphrase"}


def show_keys(name: str) -> None:
    """Print slots and how they open; never keys."""
    home = Home.find(name)
    file = read_key_file(home)
    table = Table("slot", "opens with", box=None, pad_edge=False)
    for slot in file.slots:
        table.add_row(slot.name, METHODS[slot.method])
    console = Console(highlight=False, soft_wrap=True)
    console.print(table, markup=False)
    config = home.config()
    generation = config.succession.generation if config.succession else 0
    console.print(f"generation {generation} of the file system's keys")
    if not file.needs_passphrase:
        console.print("the master key lies in the clear: who can read the file `key` needs no passphrase")


def add_key(name: str, slot_name: str, command: str) -> None:
    """Add a passphrase."""
    home = Home.find(name)
    _check(slot_name)
    with one_at_a_time(home.folder):
        unlocked = unlock(home, home.config())
        if unlocked.file.slot(slot_name) is not None:
            raise CommandError(f"there is a slot {slot_name} already; `gridfs key change` changes it", FAILED)
        _store(home, _with_passphrase(unlocked, slot_name, command))
    print(f"{home.folder}: slot {slot_name} opens it from now on")
    plain = [slot.name for slot in unlocked.file.slots if slot.method == "none"]
    if plain:
        print(f"slot {plain[0]} still opens without a passphrase: `gridfs key remove` takes it away")


def change_key(name: str, slot_name: str, command: str) -> None:
    """Change a passphrase: that of `slot_name`, or if empty of the slot which the old one opens."""
    home = Home.find(name)
    if slot_name:
        _check(slot_name)
    with one_at_a_time(home.folder):
        config = home.config()
        unlocked = unlock(home, config)
        changed = slot_name or unlocked.slot
        if unlocked.file.slot(changed) is None:
            raise CommandError(f"there is no slot {changed}; `gridfs key show` lists them", FAILED)
        _store(home, _with_passphrase(unlocked, changed, command))
    print(f"{home.folder}: the passphrase of slot {changed} is changed")
    if config.passphrase_command and command != config.passphrase_command and changed == unlocked.slot:
        print(f"mounting asks the passphrase_command in {home.config_path}: see that it prints the new one")


def remove_key(name: str, slot_name: str) -> None:
    """Take a passphrase away. Whoever does it must know one, be it another."""
    home = Home.find(name)
    with one_at_a_time(home.folder):
        unlocked = unlock(home, home.config())
        if unlocked.file.slot(slot_name) is None:
            raise CommandError(f"there is no slot {slot_name}; `gridfs key show` lists them", FAILED)
        try:
            left = unlocked.file.without(slot_name)
        except ValueError as error:
            raise CommandError(str(error), FAILED) from None
        _store(home, left)
    print(f"{home.folder}: slot {slot_name} is gone")


def check_recovery_key(name: str, path: Path) -> None:
    """Say whether a recovery key belongs to a file system. Raises WrongKey."""
    home = Home.find(name)
    recovery = read_printed(path, RecoveryKey.parse)
    if recovery.public != home.config().recovery_public:
        raise WrongKey(f"the recovery key in {path} belongs to another file system than {home.folder}")
    print(f"the recovery key in {path} belongs to {home.folder}")


def _check(slot_name: str) -> None:
    try:
        check_name(slot_name)
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None


def _with_passphrase(unlocked: Unlocked, slot_name: str, command: str) -> KeyFile:
    slot = new_slot(slot_name, unlocked.master, command, system_machine().entropy)
    if slot is None:
        raise WrongKey("a new passphrase is needed: do it on a terminal, or give --passphrase-command")
    try:
        return unlocked.file.with_slot(slot)
    except ValueError as error:
        raise CommandError(str(error), FAILED) from None


def _store(home: Home, file: KeyFile) -> None:
    replace_private(system_machine().disk, str(home.key_path), file.encode())
