"""`gridfs key`: passphrases come and go, and the file is never half of one."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gridfs.cli import key as command
from gridfs.cli import unlock as unlocking
from gridfs.codec.keyfile import KeyFile, ScryptCost, passphrase_slot, plain_slot
from gridfs.codec.keys import KeyTree, RecoveryKey, WrongKey
from gridfs.config import Config
from gridfs.exits import CommandError
from gridfs.host.home import Home, NoSuchFileSystem, replace_private, write_private
from tests.simulation.machine import World, run_world

RECOVERY = RecoveryKey(bytes(range(32)))
MASTER = RECOVERY.master
CONFIG = Config(b"f" * 16, 4, 6, 5, 1, (b"s" * 32,), RECOVERY.public)


class Person:
    """Somebody at the terminal, who types what is expected next."""

    def __init__(self) -> None:
        self.types: list[str] = []
        self.asked: list[str] = []

    def __call__(self, prompt: str) -> bytes | None:
        self.asked.append(prompt)
        return self.types.pop(0).encode() if self.types else None


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Person:
    person = Person()
    monkeypatch.setattr(unlocking, "from_terminal", person)
    return person


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """The folder of a file system called `test` under the passphrase `old`."""
    monkeypatch.setenv("GRIDFS_HOME", str(tmp_path))
    made = Home(tmp_path / "test")
    made.folder.mkdir()
    write_private(made.config_path, CONFIG.encode().encode())
    slot = passphrase_slot("main", MASTER, b"old", bytes(16), bytes(12), ScryptCost(n=256))
    write_private(made.key_path, KeyFile((slot,)).encode())
    return made


def file_of(home: Home) -> KeyFile:
    return KeyFile.parse(home.key_path.read_bytes())


def opens(home: Home, passphrase: str) -> str | None:
    """Name of the slot that a passphrase opens."""
    try:
        master, name = file_of(home).open(passphrase.encode())
    except WrongKey:
        return None
    assert master == MASTER
    return name


def test_a_passphrase_is_added_beside_the_first(home: Home, person: Person) -> None:
    person.types = ["old", "new", "new"]
    command.add_key("test", "laptop", "")
    assert (opens(home, "old"), opens(home, "new"), opens(home, "other")) == ("main", "laptop", None)
    assert stat.S_IMODE(home.key_path.stat().st_mode) == 0o600
    assert sorted(path.name for path in home.folder.iterdir()) == ["config.toml", "key"]


def test_a_passphrase_is_changed(home: Home, person: Person) -> None:
    person.types = ["old", "new", "new"]
    command.change_key("test", "", "")
    assert (opens(home, "old"), opens(home, "new")) == (None, "main")
    person.types = ["new", "two", "two"]
    command.add_key("test", "other", "")
    person.types = ["two", "three", "three"]
    command.change_key("test", "main", "")
    assert (opens(home, "new"), opens(home, "two"), opens(home, "three")) == (None, "other", "main")


def test_a_passphrase_is_removed_but_not_the_last(home: Home, person: Person) -> None:
    person.types = ["old", "new", "new"]
    command.add_key("test", "laptop", "")
    person.types = ["new"]
    command.remove_key("test", "main")
    assert (opens(home, "old"), opens(home, "new")) == (None, "laptop")
    person.types = ["new"]
    with pytest.raises(CommandError, match="last slot"):
        command.remove_key("test", "laptop")
    assert opens(home, "new") == "laptop"


@pytest.mark.parametrize(
    ("types", "error", "words"),
    [
        (["wrong"], WrongKey, "does not open"),
        ([], WrongKey, "needs a passphrase"),
        (["old"], WrongKey, "a new passphrase is needed"),
        (["old", "new", "nwe"], CommandError, "differ"),
        (["old", "", ""], CommandError, "empty"),
    ],
)
def test_what_goes_wrong_changes_nothing(
    home: Home, person: Person, types: list[str], error: type[Exception], words: str
) -> None:
    before = home.key_path.read_bytes()
    for act in (lambda: command.add_key("test", "new", ""), lambda: command.change_key("test", "main", "")):
        person.types = list(types)
        with pytest.raises(error, match=words):
            act()
    assert home.key_path.read_bytes() == before


def test_slots_are_named_well(home: Home, person: Person) -> None:
    with pytest.raises(CommandError, match="letters") as bad:
        command.add_key("test", "two words", "")
    assert bad.value.code == 2
    person.types = ["old"]
    with pytest.raises(CommandError, match="already"):
        command.add_key("test", "main", "")
    for act in (command.remove_key, lambda name, slot: command.change_key(name, slot, "")):
        person.types = ["old"]
        with pytest.raises(CommandError, match="no slot nothing"):
            act("test", "nothing")
    with pytest.raises(NoSuchFileSystem):
        command.show_keys("another")


def test_passphrases_come_from_commands(
    home: Home, person: Person, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").write_text("old\n")
    (tmp_path / "new").write_text("new\n")
    config = replace(CONFIG, passphrase_command=f"cat {tmp_path}/old")
    write_private(home.config_path, config.encode().encode())
    command.change_key("test", "", f"cat {tmp_path}/new")
    assert opens(home, "new") == "main"
    assert "see that it prints the new one" in capsys.readouterr().out
    assert person.asked == []


def test_a_key_in_the_clear_is_told(home: Home, person: Person, capsys: pytest.CaptureFixture[str]) -> None:
    write_private(home.key_path, KeyFile((plain_slot("main", MASTER),)).encode())
    person.types = ["new", "new"]
    command.add_key("test", "laptop", "")
    assert "still opens without a passphrase" in capsys.readouterr().out
    assert not file_of(home).needs_passphrase
    command.show_keys("test")
    shown = capsys.readouterr().out
    assert "no passphrase" in shown
    assert "in the clear" in shown
    command.remove_key("test", "main")
    assert file_of(home).needs_passphrase
    assert opens(home, "new") == "laptop"


def test_show_tells_slots_and_never_keys(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    command.show_keys("test")
    shown = capsys.readouterr().out
    assert "main" in shown
    assert "passphrase" in shown
    assert "generation 0" in shown
    for secret in json.loads(home.key_path.read_text())["slots"][0]["key"], MASTER.hex():
        assert secret[:12] not in shown


def test_a_recovery_key_is_compared(home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "printed"
    path.write_text(RECOVERY.text() + "\n")
    command.check_recovery_key("test", path)
    assert "belongs to" in capsys.readouterr().out
    path.write_text(RecoveryKey(bytes(32)).text())
    with pytest.raises(WrongKey, match="another file system"):
        command.check_recovery_key("test", path)
    path.write_text("gridfs-recovery-AAAA")
    with pytest.raises(WrongKey, match="not a recovery key"):
        command.check_recovery_key("test", path)


def test_two_commands_at_once_lose_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads the file, thinks for a while, and writes it: one waits for the other."""

    def prints(word: str) -> str:
        path = home.folder.parent / word
        path.write_text(word)
        return f"cat {path}"

    monkeypatch.setattr(unlocking, "from_terminal", lambda prompt: b"old")

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            for word in ("one", "two", "three"):
                nursery.start_soon(trio.to_thread.run_sync, command.add_key, "test", word, prints(word))

    trio.run(both)
    assert {slot.name for slot in file_of(home).slots} == {"main", "one", "two", "three"}


@pytest.mark.parametrize("how", ["kill", "power"])
def test_a_crash_leaves_the_old_file_or_the_new(how: str) -> None:
    """At every disk operation of a replacement; a torn one of before is not in the way."""
    path = "/home/test/key"
    old, new = b"old " * 300, b"new and longer " * 300

    async def story(world: World, at: int) -> bool:
        await trio.lowlevel.checkpoint()
        node = world.add("laptop")
        disk = world.boot(node).disk
        disk.make_directory("/home/test")
        replace_private(disk, path, old)
        for directory in ("/home", "/"):
            disk.sync_directory(directory)
        operations = 0

        def before_operation(operation: str, name: str) -> None:
            nonlocal operations
            operations += 1
            if operations == at:
                (world.kill if how == "kill" else world.crash)(node)

        node.platter.before_operation = before_operation
        died = False
        try:
            replace_private(disk, path, new)
        except OSError:
            died = True
        node.platter.before_operation = lambda operation, name: None
        if node.is_up:
            world.crash(node)
        disk = world.boot(node).disk
        file = disk.open(path)
        found = bytearray(file.size())
        file.read_into(memoryview(found), 0)
        assert found in ((old, new) if died else (new,))
        replace_private(disk, path, old)
        return died

    for seed in range(5):
        at = 1
        while run_world(seed, story, at).result:
            at += 1
        assert at > 4


def test_the_tree_behind_a_slot_is_that_of_the_file_system(home: Home, person: Person) -> None:
    person.types = ["old"]
    unlocked = unlocking.unlock(home, CONFIG)
    assert KeyTree(unlocked.master).verifying_key == KeyTree(MASTER).verifying_key
    assert MASTER.hex() not in repr(unlocked)
    assert repr(MASTER) not in repr(unlocked)
