"""One mount and two reference file systems for all cases.

The references are the tmpfs that every Linux has, and as root a small ext4 image on a loop device, mounted
like gridfs without devices and set-uid programs. Without root the directory for temporary files has to do.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.read_only import prepare
from tests.posix.stage import Stage
from tests.processes import FileSystemShape, LocalGrid, MountedFileSystem, detach_mounts_below, run

IMAGE_BYTES = 1 << 30
SHARED_MEMORY = "/dev/shm"
OPTIONS = "nosuid,nodev,relatime"


@pytest.fixture(scope="session")
def file_system_of_cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MountedFileSystem]:
    """A 1-of-1 file system: what POSIX says does not depend on the number of servers."""
    place = tmp_path_factory.mktemp("posix")
    grid = LocalGrid(place / "grid")
    made = MountedFileSystem(grid, place / "home", place / "mnt")
    try:
        grid.up(1)
        made.create(FileSystemShape(1, 1, 1))
        made.mount()
        yield made
    finally:
        made.tear_down()
        grid.tear_down()


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """File systems of the kernel, by name."""
    place = tmp_path_factory.mktemp("reference")
    places = {"ext4": place / "ext4", "tmpfs": Path(tempfile.mkdtemp(dir=SHARED_MEMORY))}
    places["ext4"].mkdir()
    try:
        if os.geteuid() == 0:
            image = place / "image"
            with image.open("wb") as file:
                file.truncate(IMAGE_BYTES)
            run(["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1", image])
            run(["mount", "-o", f"loop,{OPTIONS}", image, places["ext4"]])
        yield places
    finally:
        detach_mounts_below(place)
        shutil.rmtree(places["tmpfs"])


@pytest.fixture(scope="session")
def read_only_stage(stage: Stage, file_system_of_cases: MountedFileSystem) -> Stage:
    """The stage with its file systems mounted read-only; what is there was made before."""
    prepare(stage)
    file_system_of_cases.umount()
    file_system_of_cases.options = ("ro",)
    file_system_of_cases.mount()
    run(["mount", "-o", "remount,ro", stage.references["ext4"]])
    return stage


@pytest.fixture(scope="session")
def stage(file_system_of_cases: MountedFileSystem, references: dict[str, Path]) -> Stage:
    return Stage(references, file_system_of_cases.path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What looks back on all cases comes after them."""

    def turn(item: pytest.Item) -> int:
        marker = item.get_closest_marker("after_the_cases")
        return marker.args[0] if marker else 0

    items.sort(key=turn)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "after_the_cases(turn): a test that looks at what all cases left")
