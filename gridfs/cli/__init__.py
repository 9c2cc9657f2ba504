"""The command `gridfs`. Each verb's module is imported when it is used, so that `--help` is quick."""

from gridfs.cli.app import main

__all__ = ["main"]
