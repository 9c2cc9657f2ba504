"""What is mounted where, from /proc, and unmounting."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gridfs.exits import FAILED, CommandError
from gridfs.host.home import Home

TYPE = "fuse.gridfs"


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo."""

    mountpoint: str
    kind: str
    source: str


def mounted() -> list[Mounted]:
    """All mounts that this process sees, the topmost of a place last."""
    result = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        mountpoint = _plain(left.split()[4])
        kind, source = right.split()[:2]
        result.append(Mounted(mountpoint, kind, _plain(source)))
    return result


def mounted_at(path: str) -> Mounted | None:
    """What is mounted at this path itself. Does not touch the mount, which may be dead."""
    wanted = resolve(path)
    found = [mount for mount in mounted() if mount.mountpoint == wanted]
    return found[-1] if found else None


def home_of(mountpoint: str) -> Home:
    """The file system mounted at a path. Raises CommandError where there is none of ours."""
    found = mounted_at(mountpoint)
    if found is None or found.kind != TYPE:
        raise CommandError(f"{mountpoint} is not a gridfs mount point", FAILED)
    return Home(Path(found.source))


def home_around(directory: str) -> Home:
    """The file system in whose mount a directory lies. Raises CommandError where there is none of ours."""
    path = os.path.realpath(directory)
    around = [
        mount for mount in mounted() if os.path.commonpath((path, mount.mountpoint)) == mount.mountpoint
    ]
    found = max(around, key=lambda mount: len(mount.mountpoint), default=None)
    if found is not None:  # of mounts at one place the last one is on top
        found = [mount for mount in around if mount.mountpoint == found.mountpoint][-1]
    if found is None or found.kind != TYPE:
        raise CommandError(f"{directory} does not lie in a gridfs mount", FAILED)
    return Home(Path(found.source))


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount a FUSE file system. Raises CommandError with the reason."""
    argv = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise CommandError("fusermount3 is missing: install the package fuse3", FAILED) from None
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"fusermount3 ended with {done.returncode}"
        if "busy" in reason:
            reason = f"{path} is in use: close what is open there (`fuser -vm {path}` lists it)"
        raise CommandError(reason, FAILED)


def resolve(path: str) -> str:
    """The absolute path without symbolic links in its parents; the last part is not looked at."""
    absolute = os.path.abspath(path)
    parent, name = os.path.split(absolute)
    resolved = os.path.join(os.path.realpath(parent), name)
    if any(mount.mountpoint == resolved for mount in mounted()):
        return resolved
    try:
        return os.path.realpath(absolute)
    except OSError:
        return resolved


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), text)
