"""Paths for people: where an inode lies, as far as that can be told."""

from __future__ import annotations

import pytest

from gridfs.meta import tree
from gridfs.meta.operations import Link, Unlink
from gridfs.meta.rows import ROOT
from tests.meta.support import DIRECTORY, Driver


def test_a_path_goes_through_all_directories(driver: Driver) -> None:
    store = driver.store
    a = driver.make(b"a", DIRECTORY)
    b = driver.make(b"b c", DIRECTORY, a)
    file = driver.make(b"\xff\xe4.txt", parent=b)
    assert store.path_of(ROOT) == "/"
    assert store.path_of(a) == "/a"
    assert store.path_of(b) == "/a/b c"
    assert store.path_of(file) == r"/a/b c/\xff\xe4.txt"


def test_of_several_names_one_is_told_and_without_any_the_number(driver: Driver) -> None:
    store = driver.store
    file = driver.make(b"one")
    driver.do(Link(file, ROOT, b"two", 5))
    assert store.path_of(file) in ("/one", "/two")
    driver.do(Unlink(ROOT, b"one", file, 6))
    assert store.path_of(file) == "/two"
    driver.do(Unlink(ROOT, b"two", file, 7))
    assert store.path_of(file) == f"inode {file}"
    assert store.path_of(file + 1) == f"inode {file + 1}"


def test_the_search_is_bounded(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [driver.make(b"%d" % index) for index in range(20)]
    assert {driver.store.path_of(ino) for ino in files} == {f"/{index}" for index in range(20)}
    monkeypatch.setattr(tree, "ENTRIES_SEARCHED_MAX", 5)
    told = [driver.store.path_of(ino) for ino in files]
    assert sum(path.startswith("/") for path in told) == 5
    assert sum(path.startswith("inode ") for path in told) == 15
