"""config.toml: what is written is read back, and what is wrong is said in one line."""

from __future__ import annotations

import dataclasses

import pytest

from gridfs.config import Config
from storage.errors import Refused
from storage.format.head import Succession

SERVERS = tuple(bytes([number]) * 32 for number in range(6))
CONFIG = Config(b"f" * 16, 4, 6, 5, 1, SERVERS, b"r" * 32, 'pass show "my grid"\\n')
TEXT = CONFIG.encode()
SUCCESSION = Succession(2, b"v" * 32, b"wrapped", b"s" * 64)


def parse(text: str) -> Config:
    return Config.parse(text, "config.toml")


@pytest.mark.parametrize("command", ["", 'pass show "my grid"', "a\\b", "tab\there", "ümläut", "line\nfeed"])
def test_what_is_written_is_read_back(command: str) -> None:
    config = dataclasses.replace(CONFIG, passphrase_command=command)
    assert parse(config.encode()) == config


def test_what_recover_adds_is_read_back() -> None:
    config = dataclasses.replace(CONFIG, first_key=b"1" * 32, head_generation=3, succession=SUCCESSION)
    assert parse(config.encode()) == config


def test_a_config_of_before_is_read() -> None:
    lines = [line for line in TEXT.splitlines() if not line.startswith(("first_key", "head_generation"))]
    assert parse("\n".join(lines)) == CONFIG


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("generation = 2\n", "", "other keys than it should"),
        ("generation = 2\n", "generation = 2\ncolour = 3\n", "other keys than it should"),
        ("generation = 2\n", "generation = 0\n", "out of range"),
        ("generation = 2\n", "generation = []\n", "int"),
        ("73" * 64, "73" * 63, "wrong size"),
        ("[succession]", "succession = 3\n[other]", "cannot be read|unknown key|not iterable"),
    ],
)
def test_a_succession_that_is_wrong_is_said_so(old: str, new: str, says: str) -> None:
    text = dataclasses.replace(CONFIG, succession=SUCCESSION).encode()
    assert old in text
    with pytest.raises(Refused, match=says):
        parse(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("k", "n", "happy", "per_server", "servers", "quorum"),
    [
        (4, 6, 5, 1, 6, 5),  # happy is more than the majority
        (1, 6, 1, 1, 6, 4),  # the majority is more than happy
        (3, 10, 7, 1, 13, 7),
        (1, 1, 1, 1, 1, 1),
        (4, 6, 5, 2, 3, 2),  # several shares a server: happy counts shares
        (60, 100, 80, 1, 159, 80),
    ],
)
def test_a_quorum_is_a_majority_and_at_least_happy(
    k: int, n: int, happy: int, per_server: int, servers: int, quorum: int
) -> None:
    heads = tuple(number.to_bytes(32, "big") for number in range(servers))
    config = Config(b"f" * 16, k, n, happy, per_server, heads, b"r" * 32)
    assert config.quorum == quorum
    assert 2 * config.quorum > servers


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("version = 1", "version = 2", "format version 2; this gridfs reads 1"),
        ("version = 1", "", "format version None"),
        ("version = 1", "version = 1\ncolour = 3", "unknown key 'colour'"),
        ("k = 4\n", "", "k is missing"),
        ("k = 4", 'k = "four"', "invalid literal"),
        ("k = 4", "k = 0", "do not go together"),
        ("k = 4", "k = 6", "do not go together"),
        ("n = 6", "n = 257", "do not go together"),
        ("happy = 5", "happy = 7", "do not go together"),
        ("k = 4", "k = ", "cannot be read"),
        ("66" * 16, "66" * 15, "do not go together"),
        ("66" * 16, "zz" * 16, "non-hexadecimal"),
        ('recovery_public = "72', 'recovery_public = "', "not a key of 32 bytes"),
        ('first_key = "', 'first_key = "00', "not a key of 32 bytes"),
        ("head_servers = [", "head_servers = 3 #", "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(old: str, new: str, says: str) -> None:
    assert old in TEXT
    with pytest.raises(Refused, match=says) as caught:
        parse(TEXT.replace(old, new, 1))
    assert str(caught.value).startswith("config.toml")
    assert "\n" not in str(caught.value)
