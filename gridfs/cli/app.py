"""The verbs and their options; what they do is in the modules beside this one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn, Optional

import typer

from storage.version import __version__

app = typer.Typer(
    name="gridfs",
    help="A grid of storage servers, mounted as a file system.",
    no_args_is_help=False,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="File system: a name, or a path with a slash.")]
MountPoint = Annotated[str, typer.Argument(metavar="MOUNTPOINT", help="Directory where it is mounted.")]
PassphraseCommand = Annotated[
    str, typer.Option(help="Command that prints the passphrase, now and at each mount.")
]
NewPassphraseCommand = Annotated[str, typer.Option(help="Command that prints the new passphrase.")]

key_app = typer.Typer(help="Passphrases of a file system, and its recovery key.", rich_markup_mode=None)
app.add_typer(key_app, name="key")
spool_app = typer.Typer(help="What is on this machine alone.", rich_markup_mode=None)
app.add_typer(spool_app, name="spool")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"gridfs {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def create(
    name: Name,
    servers: Annotated[Path, typer.Option(help="File with one access line per storage server.")],
    k: Annotated[int, typer.Option("-k", help="Shares that suffice to read.", min=1, max=256)] = 4,
    n: Annotated[int, typer.Option("-n", help="Shares in all.", min=1, max=256)] = 6,
    happy: Annotated[
        Optional[int],  # noqa: UP045 (typer reads it)
        typer.Option(help="Servers that must hold a share before data counts as stored [(k+n+1)/2]."),
    ] = None,
    shares_per_server: Annotated[int, typer.Option(help="Shares that one server may hold.", min=1)] = 1,
    passphrase_command: PassphraseCommand = "",
    recovery_key_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where to write the recovery key [beside NAME]."),
    ] = None,
    passphrase: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Create a file system in a grid."""
    from gridfs.cli.create import CreateRequest, create_filesystem
    from gridfs.exits import USAGE, CommandError

    if passphrase:
        raise CommandError(
            "a secret on the command line is refused: others can see it; use --passphrase-command",
            USAGE,
        )
    create_filesystem(
        CreateRequest(
            name=name,
            servers=servers,
            k=k,
            n=n,
            happy=happy,
            shares_per_server=shares_per_server,
            passphrase_command=passphrase_command,
            recovery_key_file=recovery_key_file,
        )
    )


@app.command()
def recover(
    name: Name,
    servers: Annotated[Path, typer.Option(help="File with one access line per storage server.")],
    recovery_key_file: Annotated[Path, typer.Option(help="File with the recovery key.")],
    accept_older: Annotated[
        bool, typer.Option("--accept-older", help="Take what is found, though there may be a newer state.")
    ] = False,
    new_keys: Annotated[
        bool,
        typer.Option("--new-keys", help="Make new keys, which shut out every machine that has the old ones."),
    ] = False,
    passphrase_command: PassphraseCommand = "",
) -> None:
    """Recover a file system on this machine from the grid, with the recovery key alone."""
    from gridfs.cli.recover import RecoverRequest, recover_filesystem

    recover_filesystem(
        RecoverRequest(
            name=name,
            servers=servers,
            recovery_key_file=recovery_key_file,
            accept_older=accept_older,
            new_keys=new_keys,
            passphrase_command=passphrase_command,
        )
    )


@app.command()
def mount(
    name: Name,
    mountpoint: MountPoint,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in the foreground.")] = False,
    options: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "-o",
            help="ro, takeover, fsync=grid|spool, allow_other, attr_timeout=S, grid_timeout=S, memory=BYTES, "
            "spool=BYTES, noatime, noacl, init=own|libfuse; comma separated. To measure what they cost: "
            "measure=single (a request for each range), measure=copying (reads through one more buffer).",
        ),
    ] = None,
) -> None:
    """Mount a file system; returns once it is mounted."""
    from gridfs.cli.mount import mount_filesystem

    mount_filesystem(name, mountpoint, options or [], foreground=foreground)


@app.command("list")
def list_(json_output: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """The file systems on this machine: where they are mounted, and what is not in the grid yet."""
    from gridfs.cli.folders import list_filesystems

    list_filesystems(json_output=json_output)


@app.command()
def forget(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Give up what is not in the grid yet.")] = False,
) -> None:
    """Remove what this machine has of a file system; the grid keeps it, and `recover` gets it back."""
    from gridfs.cli.folders import forget_filesystem

    forget_filesystem(name, force=force)


@app.command()
def destroy(
    name: Name,
    yes_destroy: Annotated[
        str, typer.Option(metavar="NAME", help="For scripts: the name once more, and nothing is asked.")
    ] = "",
) -> None:
    """Release a file system on all servers, for ever; asks twice."""
    from gridfs.cli.destroy import destroy_filesystem

    destroy_filesystem(name, yes_destroy)


@app.command()
def umount(mountpoint: MountPoint) -> None:
    """Unmount; waits until everything is in the grid."""
    from gridfs.cli.unmount import unmount_filesystem

    unmount_filesystem(mountpoint)


@app.command()
def sync(mountpoint: MountPoint) -> None:
    """Wait until everything written so far is in the grid."""
    from gridfs.cli.unmount import sync_filesystem

    sync_filesystem(mountpoint)


@app.command()
def clone(
    source: Annotated[str, typer.Argument(metavar="SRC", help="File or directory inside a mount.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="New name inside the same mount.")],
) -> None:
    """Copy a file or a tree within a mount; the content is shared until one side is written."""
    from gridfs.cli.clone import make_clone

    make_clone(source, target, read_only=False)


@app.command()
def snapshot(
    directory: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="DIR", help="Directory inside a mount."),
    ] = None,
    target: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="DST", help="New name inside the same mount."),
    ] = None,
    delete: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--delete", metavar="DST", help="Remove a snapshot with all below it."),
    ] = None,
) -> None:
    """Clone a directory read-only, for root too; with --delete remove such a snapshot."""
    from gridfs.cli.clone import delete_snapshot, make_clone
    from gridfs.exits import USAGE, CommandError

    if delete is not None and directory is None:
        delete_snapshot(delete)
    elif delete is None and directory is not None and target is not None:
        make_clone(directory, target, read_only=True)
    else:
        raise CommandError("snapshot takes DIR and DST, or --delete DST", USAGE)


@app.command()
def status(
    name: Annotated[str, typer.Argument(metavar="NAME|MOUNTPOINT")],
    json_output: Annotated[bool, typer.Option("--json", help="All values, as JSON.")] = False,
) -> None:
    """Servers, health, space, what is dirty and on its way."""
    from gridfs.cli.status import show_status

    show_status(name, json_output=json_output)


@app.command()
def follow(
    name: Name,
    servers: Annotated[Path, typer.Option(help="File with one access line per storage server.")],
    read_key_file: Annotated[Path, typer.Option(help="What `gridfs key read` wrote.")],
) -> None:
    """Make a file system here that another machine writes, to be read only."""
    from gridfs.cli.follow import follow_filesystem

    follow_filesystem(name, servers, read_key_file)


@app.command()
def heads(
    name: Annotated[str, typer.Argument(metavar="NAME|MOUNTPOINT")],
    add: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="SERVER", help="Its number in the servers file, or digits of its id."),
    ] = None,
    remove: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="SERVER", help="The same, of one that keeps the head log now."),
    ] = None,
) -> None:
    """Show the servers that keep the head log, or let others keep it. The file system must be mounted."""
    from gridfs.cli.heads import change_heads

    change_heads(name, add or [], remove or [])


@key_app.command("show")
def key_show(name: Name) -> None:
    """Which slots the key file has, and how they open."""
    from gridfs.cli.key import show_keys

    show_keys(name)


@key_app.command("add")
def key_add(
    name: Name,
    slot: Annotated[str, typer.Option(help="Name of the new slot.")],
    passphrase_command: NewPassphraseCommand = "",
) -> None:
    """Add a passphrase that opens the file system, beside the others."""
    from gridfs.cli.key import add_key

    add_key(name, slot, passphrase_command)


@key_app.command("remove")
def key_remove(name: Name, slot: Annotated[str, typer.Option(help="Name of the slot.")]) -> None:
    """Take a passphrase away; not the last one."""
    from gridfs.cli.key import remove_key

    remove_key(name, slot)


@key_app.command("change")
def key_change(
    name: Name,
    slot: Annotated[str, typer.Option(help="Name of the slot [the one that the old passphrase opens].")] = "",
    passphrase_command: NewPassphraseCommand = "",
) -> None:
    """Change a passphrase."""
    from gridfs.cli.key import change_key

    change_key(name, slot, passphrase_command)


@key_app.command("read")
def key_read(name: Name, output: Annotated[Path, typer.Option(help="File to write it into.")]) -> None:
    """Write the read key, for machines that shall read everything and write nothing."""
    from gridfs.cli.follow import write_read_key

    write_read_key(name, output)


@key_app.command("recovery")
def key_recovery(
    name: Name, recovery_key_file: Annotated[Path, typer.Option(help="File with the recovery key.")]
) -> None:
    """Check that a recovery key belongs to this file system."""
    from gridfs.cli.key import check_recovery_key

    check_recovery_key(name, recovery_key_file)


@spool_app.callback()
def _spool() -> None:
    pass  # so that `export` stays a word of its own


@spool_app.command("export")
def spool_export(
    name: Name,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An empty directory, or a new one.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also what is in the grid already, as it lies in the spool.")
    ] = False,
) -> None:
    """Write out what the spool holds and the grid has not; nothing is changed. Not while it is mounted."""
    from gridfs.cli.export import export

    export(name, directory, everything=everything)


def main() -> None:
    """Entry point: one line and a documented exit code for every expected failure."""
    if os.path.exists(os.path.join(os.path.dirname(__file__), "..", "grid_file.py")):
        _fail(
            "the package pymongo brings a `gridfs` of its own, and both lie in one folder now: "
            "install gridfs into a virtual environment without pymongo",
            1,
        )
    from gridfs.exits import INTERRUPTED, USAGE, as_command_error

    try:
        code = app(standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        # Errors of usage carry their own words; their classes are not public.
        words = getattr(error, "format_message", None)
        if words is not None:
            _fail(words() or "a command is missing: see gridfs --help", USAGE)
        known = as_command_error(error)
        if known is None:
            raise
        _fail(str(known), known.code)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str, code: int) -> NoReturn:
    print(f"gridfs: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
