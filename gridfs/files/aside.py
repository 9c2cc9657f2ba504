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
