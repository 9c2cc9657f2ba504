from collections.abc import Iterator
from pathlib import Path

import pytest

from .support import Driver


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """A fresh store; at the end of each test all its invariants hold."""
    driver = Driver(tmp_path / "metadata.db")
    yield driver
    assert driver.store.check() == []
    driver.store.commit()
    assert driver.store.check() == []
    driver.store.close()
