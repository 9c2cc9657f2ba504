"""Fixtures for tests on real processes: a grid of storage servers, and a file system mounted on it.

    def test_x(grid): ...            # six servers on Unix sockets; @grid_shape(servers=8, transport="tls")
    def test_y(mounted): ...         # a file system on `grid`, mounted; @file_system_shape(k=1, n=1, happy=1)
    def test_z(make_grid): ...       # several grids

Everything started here inherits one variable of its environment, TRACE. At the end of each test what it
started is stopped, and at the end of the session every process with that variable is ended and every
mount under a test's directory is detached, whatever failed before; what was found then is an error.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import (
    TRACE,
    FileSystemShape,
    GridShape,
    LocalGrid,
    MountedFileSystem,
    clean_up,
    end_processes,
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "grid_shape(servers=6, transport='unix'): the grid of this test")
    config.addinivalue_line("markers", "file_system_shape(k=4, n=6, happy=5): the file system of this test")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ends and detaches at the end of the session what tests left, and makes an error of it."""
    os.environ[TRACE] = uuid.uuid4().hex
    # What a test starts must not find the user's own file systems.
    os.environ.pop("GRIDFS_HOME", None)
    os.environ.pop("XDG_DATA_HOME", None)
    yield
    found = clean_up(os.environ[TRACE], tmp_path_factory.getbasetemp())
    assert not found, f"left behind by the tests, and ended now: {found}"


@pytest.fixture
def short_directory() -> Iterator[Path]:
    """A directory of mode 0700 with a path short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="gridfs-t"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make_grid(tmp_path: Path) -> Iterator[Callable[..., LocalGrid]]:
    """Makes and starts grids: `make_grid(servers=6, transport="unix", name="grid")`."""
    grids: list[LocalGrid] = []

    def make(servers: int = 6, transport: str = "unix", name: str = "grid") -> LocalGrid:
        grid = LocalGrid(tmp_path / name)
        grids.append(grid)
        grid.up(servers, transport)
        return grid

    yield make
    for grid in grids:
        grid.tear_down()


@pytest.fixture
def grid(request: pytest.FixtureRequest, make_grid: Callable[..., LocalGrid]) -> LocalGrid:
    """Running storage servers, as @pytest.mark.grid_shape(...) says."""
    marker = request.node.get_closest_marker("grid_shape")
    shape = GridShape(**marker.kwargs) if marker else GridShape()
    return make_grid(shape.servers, shape.transport)


@pytest.fixture
def file_system(
    request: pytest.FixtureRequest, grid: LocalGrid, tmp_path: Path
) -> Iterator[MountedFileSystem]:
    """A file system created on `grid`, not yet mounted, as @pytest.mark.file_system_shape(...) says."""
    marker = request.node.get_closest_marker("file_system_shape")
    shape = FileSystemShape(**marker.kwargs) if marker else FileSystemShape()
    made = MountedFileSystem(grid, tmp_path / "home", tmp_path / "mnt")
    made.create(shape)
    yield made
    made.tear_down()


@pytest.fixture
def mounted(file_system: MountedFileSystem) -> MountedFileSystem:
    """A file system on `grid`, mounted at `mounted.path`."""
    file_system.mount()
    return file_system


@pytest.fixture
def ends_processes() -> Iterator[list[int]]:
    """A list for the pids of processes that a test starts by itself; they are ended with it."""
    pids: list[int] = []
    yield pids
    end_processes(pids)
