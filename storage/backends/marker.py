"""The marker of a share directory: which format it has and to which server it belongs."""

from __future__ import annotations

from storage.appendfile import read_exactly
from storage.errors import Corrupt, Refused
from storage.ports import Disk

NAME = "gridfs-shares"
VERSION = 1
_TITLE = "gridfs share directory"
_SIZE_MAX = 4096


def claim_directory(disk: Disk, directory: str, server_id: bytes) -> None:
    """Check the marker, or write it where the directory has none. Raises Refused, Corrupt or OSError."""
    disk.make_directory(directory)
    disk.sync_directory(directory.rpartition("/")[0] or "/")
    path = f"{directory}/{NAME}"
    if NAME in disk.names(directory):
        file = disk.open(path, writable=False)
        try:
            text = bytes(read_exactly(file, 0, _SIZE_MAX))
        finally:
            file.close()
        _check(text, directory, server_id)
        return
    file = disk.open(f"{path}.new", create=True)
    try:
        file.resize(0)
        file.write_at([f"{_TITLE}\nversion {VERSION}\nserver {server_id.hex()}\n".encode()], 0)
        file.sync()
    finally:
        file.close()
    disk.replace(f"{path}.new", path)
    disk.sync_directory(directory)


def _check(text: bytes, directory: str, server_id: bytes) -> None:
    lines = text.decode("ascii", "replace").splitlines()
    if len(lines) < 2 or lines[0] != _TITLE:
        raise Corrupt(f"{directory}: the marker file {NAME} is damaged")
    if lines[1] != f"version {VERSION}":
        raise Refused(f"{directory} has format {lines[1]!r}; this program reads version {VERSION}")
    if lines[2:] != [f"server {server_id.hex()}"]:
        raise Refused(f"{directory} belongs to another server: {' '.join(lines[2:])[:24]}...")
