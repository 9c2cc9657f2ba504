"""A minute of `scripts/torture`, and that its ledger sees what it is there for."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.mount.ledger import Account, Broken, Ledger, Partial, Recipe, is_mixture, is_version
from tests.mount.torture import torture

KILLS = 5


def test_a_minute_of_torture(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    with torture(tmp_path, 1, told.append) as one:
        while one.kills < KILLS:
            one.round()
        one.lose()
        summary = one.summary()
    assert summary["kills"] > KILLS
    assert told[-1]["old_client"] == "refused"
    for what in ("copies copy", "files fsync", "in-place fsync", "git commit", "sqlite transaction"):
        assert summary["done"].get(what), summary


def test_a_spool_that_is_lost_is_seen(tmp_path: Path) -> None:
    """The servers are hung, so what was closed lies in the spool alone."""
    with torture(tmp_path, 2, lambda told: None) as one:
        for number in range(6):
            one.grid.hang(number)
        ledger, mounted = one.ledger, one.mounted
        recipe = Recipe("closed", 100_000)
        (mounted.path / "files").mkdir()
        ledger.begin("files/closed", recipe)
        (mounted.path / "files/closed").write_bytes(recipe.bytes())
        ledger.done("files/closed")
        mounted.kill_daemon()
        for number in range(6):
            one.grid.resume(number)
        mounted.mount()
        ledger.check(mounted.path, is_lost=False)
        (mounted.path / "files/closed").write_bytes(b"torn" + recipe.bytes()[4:])
        with pytest.raises(Broken, match="files/closed has 100000 bytes; it may be whole closed"):
            ledger.check(mounted.path, is_lost=False)
        ledger.accounts["files/closed"] = Account([b"torn" + recipe.bytes()[4:]])
        mounted.sync()
        for number in range(6):
            one.grid.hang(number)
        (mounted.path / "files/more").write_bytes(b"not in the grid")
        ledger.begin("files/more", b"not in the grid")
        ledger.done("files/more")
        mounted.kill_daemon()
        for number in range(6):
            one.grid.resume(number)
        shutil.rmtree(mounted.home / "test" / "spool")
        mounted.mount()
        with pytest.raises(Broken, match=r"files/more (is not there|has 0 bytes)"):
            ledger.check(mounted.path, is_lost=False)


def test_versions() -> None:
    recipe = Recipe("x", 10_000)
    body = recipe.bytes()
    assert is_version(body, recipe)
    assert not is_version(body[:-1], recipe)
    assert not is_version(None, recipe)
    assert is_version(None, None)
    for part in (None, b"", body, body[:5000], bytes(10_000), body[:4096] + bytes(1000) + body[5096:]):
        assert is_version(part, Partial(recipe)), part
    for other in (body + b"x", b"x" + body[1:], body[:5000] + b"\1" * 5000):
        assert not is_version(other, Partial(recipe))


def test_mixtures() -> None:
    old, new = b"a" * 6000, b"a" * 5000 + b"b" * 4000
    for good in (old, new, new[:7000], b"a" * 5500 + b"b" * 500, b"a" * 6000 + bytes(100)):
        assert is_mixture(good, [old, new]), good[4990:]
    for bad in (old[:5999], new + b"b", b"c" + old[1:], bytes(6000)):
        assert not is_mixture(bad, [old, new])
    assert not is_mixture(None, [old])


def test_what_was_acknowledged_survives_a_kill_and_what_was_synced_a_loss() -> None:
    one, two, three = (Recipe(str(number), 100) for number in range(3))
    account = Account()
    account.versions += [one, two]
    account.kept = 1
    account.in_grid(1)
    assert account.versions == [one, two]
    assert account.kept == 0
    account.in_grid(1)  # once more says nothing new
    assert account.after_loss(one.bytes())
    assert account.after_loss(two.bytes())
    assert not account.after_loss(None)
    assert not account.after_loss(three.bytes())
    account.kept = 1
    account.versions.append(three)
    assert not account.after_kill(one.bytes())
    assert account.after_kill(two.bytes())
    assert account.versions == [one, two]  # the third has not happened
    account.versions += [Partial(three, by_loss=True), three]
    assert not account.after_kill(three.bytes()[:50])
    assert account.after_kill(three.bytes())
    assert account.after_loss(three.bytes()[:50])


def test_a_written_file_may_be_a_mixture() -> None:
    chance = random.Random(1)
    versions = [chance.randbytes(9000) for _ in range(3)]
    account = Account(list(versions), is_in_place=True)
    account.kept = 1
    mixed = versions[1][:4096] + versions[2][4096:]
    assert not account.after_kill(versions[0])
    assert account.after_kill(mixed)
    assert not account.after_kill(versions[2])
    assert account.after_loss(versions[0][:4096] + versions[2][4096:])


def test_a_file_that_nobody_made_is_seen(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.begin("place/file", b"x")
    (tmp_path / "place").mkdir()
    ledger.check(tmp_path, is_lost=False)
    (tmp_path / "place" / "stray").write_bytes(b"y")
    ledger.begin("place/file", b"x")
    with pytest.raises(Broken, match="nobody has made place/stray"):
        ledger.check(tmp_path, is_lost=False)
