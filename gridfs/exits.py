"""Exit codes of the commands, and which error gives which."""

from __future__ import annotations

from gridfs.codec.keys import BadKeyFile, WrongKey
from gridfs.files.claiming import TakenOver
from gridfs.grid.errors import GridError, NotEnoughServers, RosterError
from storage.errors import Corrupt, Refused, StorageError

FAILED = 1
USAGE = 2
NO_SUCH_FILE_SYSTEM = 10
LOCKED = 11
WRONG_KEY = 12
GRID_UNREACHABLE = 13
NOT_ENOUGH_SERVERS = 14
DAMAGED = 15
INTERRUPTED = 130


class CommandError(Exception):
    """A command ends here: one line for the terminal, and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


_CODES: tuple[tuple[type[Exception], int], ...] = (
    (TakenOver, LOCKED),
    (WrongKey, WRONG_KEY),
    (BadKeyFile, DAMAGED),
    (NotEnoughServers, GRID_UNREACHABLE),
    (RosterError, USAGE),
    (GridError, FAILED),
    (Corrupt, DAMAGED),
    (Refused, FAILED),
    (StorageError, FAILED),
    (OSError, FAILED),
)


def sole(error: BaseException) -> BaseException:
    """What was raised, out of the groups of nurseries: the first one, which is the cause of the others."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def as_command_error(error: Exception) -> CommandError | None:
    """The one line and the code for an expected error; None for one that nobody expected."""
    if isinstance(error, CommandError):
        return error
    for kind, code in _CODES:
        if isinstance(error, kind):
            text = str(error)
            if isinstance(error, OSError) and error.strerror:
                where = f"{error.filename}: " if error.filename else ""
                text = f"{where}{error.strerror}"
            return CommandError(" ".join(text.split()), code)
    return None
