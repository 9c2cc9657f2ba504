"""Into the background: the parent waits for the daemon's word and leaves with its result.

The child is forked before any task or thread exists and keeps the command line, so that process
listings show `gridfs mount NAME MOUNTPOINT`.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import signal
import sys
import traceback
from collections.abc import Callable

from gridfs.daemon.mounting import MountRequest, run_daemon
from gridfs.exits import FAILED, CommandError, as_command_error

LOG_BYTES_MAX = 1 << 20
LOG_FILES = 2


def daemonize(request: MountRequest, *, foreground: bool) -> None:
    """Run the daemon. Returns once it is mounted (in the parent), or with `foreground` at its end."""
    if foreground:
        _log_to(request)
        logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))

        def mounted(warnings: list[str]) -> None:
            _warn(warnings)
            print(f"mounted at {request.mountpoint}", flush=True)

        _report(request, mounted)
        return
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork():
        os.close(writing)
        _wait(reading, request)
        return
    os.close(reading)
    _detach()
    _log_to(request)

    def tell(message: dict[str, object]) -> None:
        os.write(writing, json.dumps(message).encode() + b"\n")
        os.close(writing)

    code = 0
    told = False

    def ready(warnings: list[str]) -> None:
        nonlocal told
        told = True
        tell({"ok": True, "warnings": warnings})

    try:
        _report(request, ready)
    except BaseException as error:
        known = as_command_error(error) if isinstance(error, Exception) else None
        code = known.code if known else FAILED
        if not told:
            text = str(known) if known else f"internal error, see {request.home.log_path}"
            tell({"error": text, "code": code})
    os._exit(code)


def _report(request: MountRequest, ready: Callable[[list[str]], None]) -> None:
    try:
        run_daemon(request, ready)
    except RuntimeError as error:
        logging.getLogger(__name__).error("mount failed: %s", error)
        raise CommandError(f"cannot mount at {request.mountpoint}: {error}") from None
    except Exception as error:
        if as_command_error(error) is None:
            logging.getLogger(__name__).critical("the daemon failed:\n%s", traceback.format_exc())
        else:
            logging.getLogger(__name__).error("%s", error)
        raise


def _wait(reading: int, request: MountRequest) -> None:
    try:
        with open(reading, "rb") as pipe:
            line = pipe.readline()
    except KeyboardInterrupt:
        raise
    if not line:
        raise CommandError(f"the mount daemon ended without a word; see {request.home.log_path}")
    answer = json.loads(line)
    if "error" in answer:
        raise CommandError(answer["error"], answer["code"])
    _warn(answer["warnings"])


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"gridfs: warning: {warning}", file=sys.stderr, flush=True)


def _detach() -> None:
    """A session of its own, no terminal, no directory held; whoever reads our output is let go."""
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _log_to(request: MountRequest) -> None:
    handler = logging.handlers.RotatingFileHandler(
        request.home.log_path, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(handler)
