"""The command `gridfs` with a fault planted in each FUSE handler, for `test_firewall`.

    PLANT=DIRECTORY python -m tests.mount.planted mount NAME MOUNTPOINT

A handler raises, within its firewall, while a file of its name lies in the directory.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from gridfs.cli import main
from gridfs.fuse.errors import firewall
from gridfs.fuse.handlers import Handlers

PLANT = "GRIDFS_TEST_PLANT"


class Planted(Exception):
    """What nobody expects."""


def handler_names() -> list[str]:
    """All that the kernel may call."""
    return [
        name for name, value in vars(Handlers).items() if name[0] != "_" and hasattr(value, "__wrapped__")
    ]


def plant(directory: str) -> None:
    for name in handler_names():
        setattr(Handlers, name, firewall(_planted(getattr(Handlers, name).__wrapped__, directory)))


def _planted(handler: Callable[..., Any], directory: str) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def begin(*args: Any, **kwargs: Any) -> Any:
        if os.path.exists(os.path.join(directory, handler.__name__)):
            raise Planted(f"in {handler.__name__}")
        return await handler(*args, **kwargs)

    return begin


if __name__ == "__main__":
    plant(os.environ[PLANT])
    main()
