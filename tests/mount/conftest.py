"""Grids that a module's tests share, since six processes take two seconds to start.

def test_x(six): ...                      # six running servers; those a test killed are started again
def test_y(make_file_system): ...         # make_file_system(grid=None, shape=..., options=(), mount=True)
def test_z(tools): ...                    # the module's one mounted file system
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import FileSystemShape, LocalGrid, MountedFileSystem

MakeFileSystem = Callable[..., MountedFileSystem]


@pytest.fixture(scope="module")
def module_grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGrid]:
    grid = LocalGrid(tmp_path_factory.mktemp("six") / "grid")
    try:
        grid.up(6)
        yield grid
    finally:
        grid.tear_down()


@pytest.fixture
def six(module_grid: LocalGrid) -> LocalGrid:
    """Six running servers on Unix sockets, shared by the module."""
    module_grid.up()
    return module_grid


@pytest.fixture
def make_file_system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeFileSystem]:
    """Makes file systems, mounted unless `mount=False`; on the module's six servers without `grid`."""
    made: list[MountedFileSystem] = []

    def make(
        grid: LocalGrid | None = None,
        shape: FileSystemShape | None = None,
        options: tuple[str, ...] = (),
        mount: bool = True,
    ) -> MountedFileSystem:
        place = tmp_path / f"fs{len(made)}"
        place.mkdir()
        servers = request.getfixturevalue("six") if grid is None else grid
        result = MountedFileSystem(servers, place / "home", place / "mnt", options=options)
        made.append(result)
        result.create(shape or FileSystemShape())
        if mount:
            result.mount()
        return result

    yield make
    for file_system in made:
        file_system.tear_down()


@pytest.fixture(scope="module")
def module_file_system(
    module_grid: LocalGrid, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MountedFileSystem]:
    place = tmp_path_factory.mktemp("tools")
    made = MountedFileSystem(module_grid, place / "home", place / "mnt")
    try:
        made.create(FileSystemShape())
        yield made
    finally:
        made.tear_down()


@pytest.fixture
def tools(module_file_system: MountedFileSystem) -> MountedFileSystem:
    """A 4-of-6 file system on six servers, mounted, shared by the module's tests."""
    if not module_file_system.daemon_pids():
        module_file_system.mount()
    return module_file_system


@pytest.fixture
def place(tools: MountedFileSystem, request: pytest.FixtureRequest) -> Path:
    """A directory in `tools` for this test alone."""
    path = tools.path / request.node.name.removeprefix("test_")
    path.mkdir()
    return path
