"""Requests that change something wait while a tree is being cloned; all others go on."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3

from gridfs.files.pause import Pause

CHANGES = (
    "setattr",
    "mknod",
    "mkdir",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "create",
    "write",
    "setxattr",
    "removexattr",
)


def let_changes_wait(handlers: pyfuse3.Operations, pause: Pause) -> None:
    """From now on each handler that changes something begins once `pause` is over."""
    for name in CHANGES:
        setattr(handlers, name, _waiting(getattr(handlers, name), pause))


def _waiting(handler: Callable[..., Awaitable[Any]], pause: Pause) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(handler)
    async def begin(*args: Any) -> Any:
        if pause.is_on:
            await pause.over()
        return await handler(*args)

    return begin
