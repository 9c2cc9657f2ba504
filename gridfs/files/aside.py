"""Local state that no longer fits is set aside, never removed: another name beside its own."""

from __future__ import annotations

from storage.ports import Disk


def set_aside(disk: Disk, path: str, *suffixes: str) -> str:
    """Rename `path`, and what has its name with one of `suffixes`, where they exist; returns the new name.

    The caller syncs the directory.
    """
    folder, _, name = path.rpartition("/")
    taken = disk.names(folder or "/")
    number = 1
    while f"{name}.aside-{number}" in taken:
        number += 1
    aside = f"{path}.aside-{number}"
    for suffix in (*suffixes, ""):
        if name + suffix in taken:
            disk.replace(path + suffix, aside + suffix)
    return aside


def asides_of(disk: Disk, path: str) -> list[str]:
    """Paths of what was set aside from `path`, the latest first."""
    folder, _, name = path.rpartition("/")
    stem = f"{name}.aside-"
    numbers = [
        int(found.removeprefix(stem))
        for found in disk.names(folder or "/")
        if found.startswith(stem) and found.removeprefix(stem).isdigit()
    ]
    return [f"{path}.aside-{number}" for number in sorted(numbers, reverse=True)]
