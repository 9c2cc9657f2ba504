"""`gridfs-storage` as a process: what it prints, its exit codes, and what it survives."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from storage.client import Access, Span, Traffic
from storage.errors import Unavailable
from storage.version import __version__
from storage.wire.url import format_access, parse_access
from tests.storage.servers import FILE_SYSTEM, STAMP, make_pack, until, using

COMMAND = [sys.executable, "-m", "storage.cli"]
WAIT_S = 20

Serve = Callable[..., tuple[subprocess.Popen[str], str]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=WAIT_S, check=False)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers and returns (process, first line); whatever happens, they are ended."""
    processes: list[subprocess.Popen[str]] = []

    def start(directory: Path, listen: str, *options: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [*COMMAND, "serve", str(directory), "--listen", listen, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline()

    yield start
    for process in processes:
        process.kill()
        process.communicate(timeout=WAIT_S)


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    process.send_signal(number)
    _, stderr = process.communicate(timeout=WAIT_S)
    return process.returncode, stderr


async def put_and_read(access: Access) -> None:
    pack = make_pack(length=700_000)
    async with using(access) as client:
        await client.put([pack.put(0)], FILE_SYSTEM, STAMP, Traffic.UPLOAD)
        await read_back(access)


async def read_back(access: Access) -> None:
    pack = make_pack(length=700_000)
    buffer = bytearray(len(pack.shares[0]))
    async with using(access) as client:
        spans = [Span(pack.pack_id, 0, 0, len(buffer))]
        assert await client.readv(spans, [memoryview(buffer)], Traffic.DEMAND) == [len(buffer)]
    assert buffer == pack.shares[0]


@pytest.mark.parametrize("transport", ["unix", "tls"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_access_use_and_end(tmp_path: Path, serve: Serve, transport: str, number: int) -> None:
    directory = tmp_path / "server"
    listen = f"unix:{tmp_path}/run/s" if transport == "unix" else "tls://127.0.0.1:0"
    process, line = serve(directory, listen)
    public = parse_access(line)
    assert line == format_access(public) + "\n"
    assert public.secret is None

    made = run("access", str(directory))
    assert (made.returncode, made.stderr) == (0, "")
    access = parse_access(made.stdout)
    assert access.public() == public
    assert access.rights == "full"
    await put_and_read(access)

    code, log = end(process, number)
    assert code == 0
    assert "Traceback" not in log

    # Without a server, access still knows the address; with one again, everything is there.
    reader = parse_access(run("access", str(directory), "--rights", "read").stdout)
    assert reader.rights == "read"
    if transport == "unix":
        _, again = serve(directory, listen)
        assert again == line
        await read_back(reader)


async def test_a_killed_server_comes_back_with_what_it_acknowledged(tmp_path: Path, serve: Serve) -> None:
    listen = f"unix:{tmp_path}/run/s"
    process, _ = serve(tmp_path / "server", listen)
    access = parse_access(run("access", str(tmp_path / "server")).stdout)
    await put_and_read(access)
    async with using(access) as client:
        await client.info()
        process.kill()
        process.wait(WAIT_S)
        with pytest.raises(Unavailable):
            await client.info()
        serve(tmp_path / "server", listen)

        async def is_back() -> None:
            with trio.fail_after(WAIT_S):
                while client.state != "connected":
                    await trio.lowlevel.checkpoint()

        await is_back()
        await client.info()
    await read_back(access)


def test_everything_is_private(tmp_path: Path, serve: Serve) -> None:
    process, _ = serve(tmp_path / "server", f"unix:{tmp_path}/run/s")
    run("access", str(tmp_path / "server"))
    end(process)
    seen = 0
    for parent, directories, files in os.walk(tmp_path / "server"):
        for name in (*directories, *files):
            mode = os.lstat(os.path.join(parent, name)).st_mode
            assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), name
            seen += 1
    assert seen >= 6


def test_a_directory_is_served_once(tmp_path: Path, serve: Serve) -> None:
    process, _ = serve(tmp_path / "server", f"unix:{tmp_path}/run/s")
    second = run("serve", str(tmp_path / "server"), "--listen", f"unix:{tmp_path}/run/t")
    assert second.returncode == 11
    assert str(process.pid) in second.stderr
    assert second.stderr.count("\n") == 1
    other = run("serve", str(tmp_path / "other"), "--listen", f"unix:{tmp_path}/run/s")
    assert other.returncode == 11
    assert "another server listens" in other.stderr


def test_version() -> None:
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"gridfs-storage {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "command"),
        (["frobnicate"], 2, "frobnicate"),
        (["serve"], 2, "DIR"),
        (["serve", "{d}"], 2, "--listen"),
        (["serve", "{d}", "--listen", "tcp://h:1"], 2, "unix:PATH or tls://HOST:PORT"),
        (["serve", "{d}", "--listen", "unix:{t}/run/s", "--sync", "never"], 2, "none, group or each"),
        (["serve", "{d}", "--listen", "unix:{t}/run/s", "--capacity", "-5"], 2, "number of bytes"),
        (["serve", "{d}", "--listen", "unix:{t}/run/s", "--frob"], 2, "--frob"),
        (["serve", "{t}/file", "--listen", "unix:{t}/run/s"], 1, "file"),
        (["serve", "{d}", "--listen", "unix:{t}/open/s"], 1, "open to others"),
        (["serve", "{d}", "--listen", "unix:{t}/file"], 1, "not a socket"),
        (["serve", "{d}", "--listen", "tls://192.0.2.1:1"], 1, "cannot listen"),
        (["access", "{t}/none"], 1, "never served"),
        (["access", "{d}", "--rights", "all"], 2, "full or read"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("x")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    filled = [each.format(d=tmp_path / "server", t=tmp_path) for each in arguments]
    result = run(*filled)
    assert result.returncode == code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert (tmp_path / "file").read_text() == "x"
    assert not (tmp_path / "none").exists()


async def test_sync_and_capacity_are_said_by_the_server(tmp_path: Path, serve: Serve) -> None:
    serve(tmp_path / "server", f"unix:{tmp_path}/run/s", "--sync", "none", "--capacity", "1G")
    access = parse_access(run("access", str(tmp_path / "server")).stdout)
    async with using(access) as client:
        info = await client.info()
        assert (info.sync_policy, info.space.total) == ("none", 2**30)
        await until(lambda: client.statistics().pending == 0)
