"""The one errno table, and the firewall around every handler.

pyfuse3 ends the mount on any exception but FUSEError, so each handler is wrapped: what is expected
becomes its errno, what is not is logged with its traceback and becomes EIO.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import pyfuse3

from gridfs.files.claiming import TakenOver
from gridfs.grid.errors import DamagedData, NotEnoughServers, NotEnoughShares, RosterError
from storage.errors import Conflict, Corrupt, Exhausted, Missing, Refused, StorageError, Unavailable

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

ERRNO: dict[type[Exception], int] = {
    Unavailable: errno.EIO,
    Corrupt: errno.EIO,
    Missing: errno.EIO,
    Conflict: errno.EROFS,
    Refused: errno.EIO,
    Exhausted: errno.ENOSPC,
    TakenOver: errno.EROFS,
    NotEnoughServers: errno.EIO,
    NotEnoughShares: errno.EIO,
    DamagedData: errno.EIO,
    RosterError: errno.EIO,
    StorageError: errno.EIO,
}


def errno_of(error: Exception) -> int:
    """The errno that a program gets for an expected error; 0 for one that nobody expected."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    return next((ERRNO[kind] for kind in type(error).__mro__ if kind in ERRNO), 0)


UNANSWERED = ("forget",)
"""Handlers without an answer: pyfuse3 ends the mount on any error of theirs, FUSEError too."""


class Counted(Protocol):
    """Whose handlers they are."""

    calls: dict[str, int]
    """How often the kernel asked, by handler."""


H = TypeVar("H", bound=Counted)


def firewall(
    handler: Callable[Concatenate[H, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[H, P], Coroutine[Any, Any, T]]:
    """Wrap a FUSE handler so that only FUSEError leaves it, if anything may; counts its calls."""
    name = handler.__name__

    @functools.wraps(handler)
    async def guarded(self: H, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.calls[name] = self.calls.get(name, 0) + 1
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            code = errno_of(error)
            if not code:
                logger.exception("%s failed", name)
                code = errno.EIO
            elif code in (errno.EIO, errno.ENOSPC):
                logger.error("%s: %s", name, error)
            if name in UNANSWERED:
                return cast(T, None)
            raise pyfuse3.FUSEError(code) from None

    return guarded
