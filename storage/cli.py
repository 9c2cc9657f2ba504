"""`gridfs-storage`: serve a directory of shares, and give access to it.

The edge: the only place here that reads the command line, handles signals and turns errors into one line
and an exit code. What a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from storage.version import __version__

if TYPE_CHECKING:
    from storage.backends.port import SyncPolicy
    from storage.ports import Address
    from storage.server import ServerConfig

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_LOCKED = 11
EXIT_INTERRUPTED = 130
DESCRIPTORS_WANTED = 65536
LOG_LINES_MAX = 10_000
"""Lines that wait for a slow reader of stderr; more are dropped."""

_SIZE = re.compile(r"(\d{1,18})([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class Failed(Exception):
    """Ends the program with one line and an exit code."""

    def __init__(self, message: str, code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.code = code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Failed(f"{message}: see {self.prog} --help", EXIT_USAGE)


def _parser() -> argparse.ArgumentParser:
    """Not typer, which the rest of the project uses: it alone takes a quarter of a server's memory."""
    parser = _Parser(
        prog="gridfs-storage",
        description="Keep shares of gridfs file systems for clients that need not trust this server.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"gridfs-storage {__version__}", help="Print the version."
    )
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)

    serving = commands.add_parser(
        "serve", help="Serve DIR until SIGTERM or SIGINT.", description=serve.__doc__, allow_abbrev=False
    )
    serving.add_argument("directory", metavar="DIR", help="Where shares are kept; made where missing.")
    serving.add_argument(
        "--listen", required=True, metavar="unix:PATH|tls://HOST:PORT", help="Where to listen."
    )
    serving.add_argument(
        "--sync", default="group", metavar="none|group|each", help="When shares are synced (group)."
    )
    serving.add_argument("--capacity", metavar="BYTES", help="Bytes that shares may take (K, M, G, T work).")
    serving.add_argument(
        "--copying", action="store_true", help="Copy every answer before it is sent, to measure its cost."
    )
    serving.set_defaults(run=serve)

    giving = commands.add_parser(
        "access", help="Make an account, and print its URL.", description=access.__doc__, allow_abbrev=False
    )
    giving.add_argument("directory", metavar="DIR", help="The directory that a server serves.")
    giving.add_argument(
        "--rights", default="full", metavar="full|read", help="What the client may do (full)."
    )
    giving.set_defaults(run=access)
    return parser


def serve(directory: str, listen: str, sync: str, capacity: str | None, copying: bool) -> None:
    """Serve DIR until SIGTERM or SIGINT. Prints the server's public URL as soon as it listens."""
    from storage.host import have_one_heap, lock_directory
    from storage.server import ServerConfig
    from storage.wire.messages import READV_SIZE_MAX
    from storage.wire.url import parse_listen

    size = None if capacity is None else _parse_size(capacity)
    config = ServerConfig(sync_policy=_parse_sync(sync), capacity_bytes=size)
    if copying:
        config = replace(config, copied_size_max=READV_SIZE_MAX)
    with _usage():
        address = _make_absolute(parse_listen(listen))
    directory = os.path.abspath(directory)
    have_one_heap()
    with lock_directory(directory), _logging():
        _raise_descriptor_limit()
        _run(directory, address, config)


def access(directory: str, rights: str) -> None:
    """Make an account, and print the URL with its secret: one line of a servers FILE. Keep it private."""
    from storage.host import OsDisk, SystemEntropy
    from storage.identity import create_account, load_identity, recorded_address
    from storage.wire.url import Access, format_access

    if rights not in ("full", "read"):
        raise Failed(f"--rights must be full or read, not {rights!r}", EXIT_USAGE)
    directory = os.path.abspath(directory)
    disk = OsDisk()
    identity = load_identity(disk, directory)
    address = recorded_address(disk, directory)
    if identity is None or address is None:
        raise Failed(f"{directory} was never served, so its address is not known yet: run serve first")
    account = create_account(disk, SystemEntropy(), directory, rights)
    url = Access(identity.server_id, address, account.name, account.secret, account.rights)
    print(format_access(url), flush=True)


def main() -> None:
    """The console script. Every failure is one line on stderr and an exit code, never a traceback."""
    from storage.errors import Conflict, StorageError

    os.umask(0o077)
    try:
        given = vars(_parser().parse_args())
        del given["command"]
        given.pop("run")(**given)
    except Failed as error:
        _end(str(error), error.code)
    except Conflict as error:
        _end(str(error), EXIT_LOCKED)
    except StorageError as error:
        _end(str(error), EXIT_FAILED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        _end(f"{name}{error.strerror or error}", EXIT_FAILED)
    except KeyboardInterrupt:
        _end("interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        _end(f"an error of this program: {type(error).__name__}: {error}", EXIT_FAILED)


def _end(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    print(f"gridfs-storage: {line}", file=sys.stderr)
    sys.exit(code)


def _run(directory: str, address: Address, config: ServerConfig) -> None:
    import signal

    import trio

    from storage.server import RunningServer, run_server
    from storage.system import system_machine
    from storage.wire.url import format_access

    machine = system_machine()

    async def serve_until_told() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:

                async def end_on_signal() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel()
                        return

                nursery.start_soon(end_on_signal)
                running: RunningServer = await nursery.start(run_server, machine, directory, address, config)
                print(format_access(running.access), flush=True)

    try:
        trio.run(serve_until_told)
    except BaseExceptionGroup as group:
        raise _first_failure(group) from group


def _first_failure(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that the line is about: of several at once, the first."""
    first = group.exceptions[0]
    return _first_failure(first) if isinstance(first, BaseExceptionGroup) else first


def _make_absolute(address: Address) -> Address:
    from storage.ports import UnixAddress

    return UnixAddress(os.path.abspath(address.path)) if isinstance(address, UnixAddress) else address


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Log to stderr from a thread of its own, so that a reader who stopped does not stop the server."""
    import logging
    from logging.handlers import QueueHandler, QueueListener
    from queue import Queue

    lines: Queue[logging.LogRecord] = Queue(LOG_LINES_MAX)
    stderr = logging.StreamHandler()
    stderr.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    # A full queue drops lines; it must neither wait nor print a traceback of its own.
    logging.raiseExceptions = False
    listener = QueueListener(lines, stderr)
    root = logging.getLogger()
    root.addHandler(QueueHandler(lines))
    root.setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        listener.stop()


@contextlib.contextmanager
def _usage() -> Iterator[None]:
    """Turn a refusal into an error of usage."""
    from storage.errors import Refused

    try:
        yield
    except Refused as error:
        raise Failed(str(error), EXIT_USAGE) from error


def _raise_descriptor_limit() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _parse_size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise Failed(f"--capacity must be a number of bytes such as 500G, not {text!r}", EXIT_USAGE)
    return int(match[1]) * _UNITS[match[2].lower()]


def _parse_sync(text: str) -> SyncPolicy:
    from storage.backends.port import SyncPolicy

    try:
        return SyncPolicy(text)
    except ValueError:
        raise Failed(f"--sync must be none, group or each, not {text!r}", EXIT_USAGE) from None


if __name__ == "__main__":
    main()
