"""A grid of storage servers on this machine: started, stopped and listed. Run by scripts/local-grid.

    scripts/local-grid up DIR [--servers N] [--transport unix|tls] [--serve=OPTION ...]
    scripts/local-grid down DIR
    scripts/local-grid status DIR

`up` starts what does not run, adds servers up to N (6 the first time) and returns when all listen.
What it starts gets each OPTION as a word of `gridfs-storage serve`: --serve=--sync=none, for example.
Servers once made stay, at the address they were made with, since file systems remember it. In DIR:

    servers     one access line per server, with secrets: the servers FILE of `gridfs create`
    N           the directory of server N, counted from 0
    N.pid       its process while it runs        N.log    what it says
    N.access    its access line                  N.url    its public URL, printed when it listens

Unix sockets lie in DIR/sockets, or where such a path would be too long for the kernel (107 bytes) in
/tmp/gridfs-UID-HASH, made anew after a reboot. A process is touched only if its command line
says that it serves that very directory.

Exit codes: 0 good (status: all run), 1 failed (status: not all run; down: one had to be killed), 2 usage,
130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from storage.errors import StorageError
from storage.host import OsDisk, SystemEntropy
from storage.identity import create_account
from storage.ports import TlsAddress, UnixAddress
from storage.wire.url import format_access, parse_access

SERVERS_DEFAULT = 6
SERVERS_MAX = 256
SOCKET_PATH_MAX = 100
"""Bytes; the kernel takes 107, and a server may need a few for the name it binds before renaming."""
LOG_BYTES_MAX = 1 << 20
START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 20.0
KILL_SECONDS_MAX = 10.0


class GridFailure(Exception):
    """What went wrong, in one line for a person."""


@dataclass(frozen=True)
class Server:
    """One server's files."""

    grid: Path
    """The grid's directory, absolute."""
    number: int
    """Counted from 0."""

    @property
    def directory(self) -> Path:
        return self.grid / str(self.number)

    def file(self, kind: str) -> Path:
        return self.grid / f"{self.number}.{kind}"

    def command(self, verb: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "storage.cli", verb, str(self.directory), *arguments]

    def open_process(self) -> int | None:
        """A pidfd of the running server, to be closed by the caller; None if it does not run.

        Checked after it was opened: from then on the kernel cannot give the number to another.
        """
        try:
            pid = int(self.file("pid").read_text())
            descriptor = os.pidfd_open(pid)
        except (OSError, ValueError):
            return None
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            words = []
        if b"serve" in words and os.fsencode(self.directory) in words:
            return descriptor
        os.close(descriptor)
        return None

    def is_running(self) -> bool:
        descriptor = self.open_process()
        if descriptor is None:
            return False
        os.close(descriptor)
        return True


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="local-grid", description="Storage servers on this machine.", epilog=__doc__, add_help=True
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="up|down|status")
    for verb in ("up", "down", "status"):
        command = verbs.add_parser(verb)
        command.add_argument("directory", metavar="DIR", type=Path)
        if verb == "up":
            command.add_argument("--servers", metavar="N", type=int)
            command.add_argument("--transport", choices=("unix", "tls"))
            command.add_argument("--serve", metavar="OPTION", action="append", default=[])
    options = parser.parse_args()
    if options.verb == "up" and options.servers is not None and not 1 <= options.servers <= SERVERS_MAX:
        parser.error(f"--servers must be from 1 to {SERVERS_MAX}")
    grid = options.directory.resolve()
    os.umask(0o077)
    try:
        if options.verb == "up":
            return up(grid, options.servers, options.transport, options.serve)
        return down(grid) if options.verb == "down" else status(grid)
    except GridFailure as failure:
        print(f"local-grid: {failure}", file=sys.stderr)
    except OSError as error:
        print(f"local-grid: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


# ---- up ---------------------------------------------------------------------------------------------


def up(grid: Path, count: int | None, transport: str | None, serve: list[str]) -> int:
    """Start what does not run; see the module's text."""
    grid.mkdir(parents=True, exist_ok=True)
    with locked(grid):
        known = servers_of(grid)
        for server in known:
            check_transport(server, transport)
        count = max(count or 0, *(server.number + 1 for server in known), 0) or SERVERS_DEFAULT
        servers = [Server(grid, number) for number in range(count)]
        sockets = socket_directory(grid)
        if sockets.parent != grid and transport != "tls":
            print(f"{grid} is too long for Unix sockets: they are in {sockets}")
        # A starting server takes a processor for a while: more at once would only wait in memory.
        with ThreadPoolExecutor(max_workers=2 * (os.cpu_count() or 1) + 2) as pool:
            outcomes = list(
                pool.map(lambda server: bring_up(server, sockets, transport or "unix", serve), servers)
            )
        write_servers_file(grid)
        failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
        for failure in failures:
            print(f"local-grid: {failure}", file=sys.stderr)
        if not failures:
            print(f"{count} servers run ({outcomes.count(True)} started), listed in {grid / 'servers'}")
        return 1 if failures else 0


def bring_up(server: Server, sockets: Path, transport: str, serve: list[str]) -> bool | str:
    """Do what is missing of one server: True if it was started, or what went wrong, in words."""
    try:
        is_new = not server.directory.exists()
        was_running = server.is_running()
        if not was_running:
            start(server, listen_address(server, sockets, transport), serve)
        if is_new or not server.file("access").exists():
            save_access(server)
    except (GridFailure, OSError, StorageError) as error:
        return f"server {server.number}: {error}"
    return not was_running


def start(server: Server, listen: str, serve: list[str]) -> None:
    """Start the process and wait until it has printed its URL, which it does when it listens."""
    log = server.file("log")
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(server.file("log.old"))
    url = server.file("url")
    with log.open("ab") as errors, url.open("wb") as output:
        said_before = errors.tell()
        process = subprocess.Popen(
            server.command("serve", "--listen", listen, *serve),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            cwd="/",
            start_new_session=True,
        )
    write_private(server.file("pid"), f"{process.pid}\n")
    deadline = time.monotonic() + START_SECONDS_MAX
    while b"\n" not in url.read_bytes():
        try:
            process.wait(timeout=0.02)
        except subprocess.TimeoutExpired:
            if time.monotonic() < deadline:
                continue
            process.kill()
            process.wait()
            server.file("pid").unlink()
            raise GridFailure(f"did not listen within {START_SECONDS_MAX:.0f} s, see {log}") from None
        server.file("pid").unlink()
        with log.open("rb") as said:
            said.seek(said_before)
            lines = said.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        raise GridFailure(f"ended with {process.returncode}: {last}")


def save_access(server: Server) -> None:
    """Make an account for us and keep its access line, as `gridfs-storage access` does.

    Not by that command: for a hundred servers its start alone would take half the time.
    """
    account = create_account(OsDisk(), SystemEntropy(), str(server.directory), "full")
    url = parse_access(server.file("url").read_text())
    access = replace(url, account=account.name, secret=account.secret, rights=account.rights)
    write_private(server.file("access"), format_access(access) + "\n")


def listen_address(server: Server, sockets: Path, transport: str) -> str:
    """The address of before, or a new one. Makes the directory of the socket where it is missing."""
    if server.file("access").exists():
        address = parse_access(server.file("access").read_text()).address
        if isinstance(address, TlsAddress):
            return f"tls://{address.host}:{address.port}"
        path = Path(address.path)
    elif transport == "tls":
        return "tls://127.0.0.1:0"
    else:
        path = sockets / str(server.number)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    found = path.parent.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise GridFailure(f"{path.parent} must be a directory of yours with mode 0700")
    return f"unix:{path}"


def socket_directory(grid: Path) -> Path:
    """Where the sockets of this grid lie; the same after every reboot, as file systems remember it."""
    near = grid / "sockets"
    if len(os.fsencode(near / str(SERVERS_MAX))) <= SOCKET_PATH_MAX:
        return near
    digest = hashlib.sha256(os.fsencode(grid)).hexdigest()[:12]
    return Path(f"/tmp/gridfs-{os.getuid()}-{digest}")  # noqa: S108 - mode and owner are checked


def check_transport(server: Server, transport: str | None) -> None:
    if transport is None or not server.file("access").exists():
        return
    address = parse_access(server.file("access").read_text()).address
    found = "unix" if isinstance(address, UnixAddress) else "tls"
    if found != transport:
        raise GridFailure(f"server {server.number} was made with --transport {found}, and stays so")


def write_servers_file(grid: Path) -> None:
    access_files = [server.file("access") for server in servers_of(grid)]
    write_private(grid / "servers", "".join(file.read_text() for file in access_files if file.exists()))


# ---- down and status --------------------------------------------------------------------------------


def down(grid: Path) -> int:
    """SIGTERM to all, SIGKILL to those that are still there after STOP_SECONDS_MAX."""
    if not grid.is_dir():
        raise GridFailure(f"there is no grid in {grid}")
    with locked(grid), contextlib.ExitStack() as descriptors:
        servers = servers_of(grid)
        running: dict[int, Server] = {}
        for server in servers:
            descriptor = server.open_process()
            if descriptor is not None:
                descriptors.callback(os.close, descriptor)
                running[descriptor] = server
        count = len(running)
        send(list(running), signal.SIGTERM)
        # A process that was stopped (SIGSTOP) ends only when it goes on.
        send(list(running), signal.SIGCONT)
        await_ends(running, STOP_SECONDS_MAX)
        stubborn = sorted(server.number for server in running.values())
        send(list(running), signal.SIGKILL)
        await_ends(running, KILL_SECONDS_MAX)
        for server in servers:
            if server not in running.values():
                server.file("pid").unlink(missing_ok=True)
        remove_short_sockets(grid)
    if running:
        raise GridFailure(f"these do not end even when killed: {sorted(s.number for s in running.values())}")
    if stubborn:
        raise GridFailure(f"did not end within {STOP_SECONDS_MAX:.0f} s and had to be killed: {stubborn}")
    print(f"{count} servers stopped" if count else "no server was running")
    return 0


def send(descriptors: list[int], number: signal.Signals) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, number)


def await_ends(running: dict[int, Server], seconds_max: float) -> None:
    """Take out of `running` what ends in time. A pidfd is readable when its process has ended."""
    poll = select.poll()
    for descriptor in running:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + seconds_max
    while running and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            del running[descriptor]


def remove_short_sockets(grid: Path) -> None:
    """Take away the directory in /tmp, which nobody else would; servers take away their sockets."""
    directory = socket_directory(grid)
    if directory.parent == grid or not directory.is_dir() or directory.lstat().st_uid != os.getuid():
        return
    for path in directory.iterdir():
        if path.is_socket():
            path.unlink()
    with contextlib.suppress(OSError):
        directory.rmdir()


def status(grid: Path) -> int:
    """One line per server; 1 unless all run."""
    servers = servers_of(grid) if grid.is_dir() else []
    if not servers:
        raise GridFailure(f"there is no grid in {grid}")
    count = 0
    for server in servers:
        state = "not running"
        if server.is_running():
            count += 1
            state = f"running, pid {server.file('pid').read_text().strip()}"
        url = server.file("url").read_text().strip() if server.file("url").exists() else ""
        print(f"{server.number:3}  {state:22}  {url}".rstrip())
    print(f"{count} of {len(servers)} servers run")
    return 0 if count == len(servers) else 1


# ---- files ------------------------------------------------------------------------------------------


def servers_of(grid: Path) -> list[Server]:
    """All servers ever made here, in order."""
    numbers = {int(path.name) for path in grid.iterdir() if path.name.isdecimal() and path.is_dir()}
    return [Server(grid, number) for number in sorted(numbers)]


@contextlib.contextmanager
def locked(grid: Path) -> Iterator[None]:
    """One `up` or `down` at a time on a grid."""
    descriptor = os.open(grid, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, text: str) -> None:
    """Replace a file by one of mode 0600 (the umask sees to that), whole or not at all."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    beside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
