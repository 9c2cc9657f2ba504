"""Set-ID bits, ACLs and extended attributes: the mount answers as the machine's own file system does.

Each script runs twice, in a directory of the mount and in one beside it, and says the same both times.
Users other than root come in by the working directory, since pytest's own directories are closed to them.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.support import shell
from tests.processes import MountedFileSystem

USERS = "setpriv --reuid {0} --regid {0} --groups {1} --"
PRELUDE = rf"""
umask 022
export LC_ALL=C
root() {{ "$@"; }}
ann() {{ {USERS.format(1000, 1000)} "$@"; }}
bob() {{ {USERS.format(2000, 2000)} "$@"; }}
cid() {{ {USERS.format(3000, "3000,500")} "$@"; }}
step() {{
    echo "## $*"
    "$@" 2>&1
    echo "ended with $?"
}}
show() {{
    for file in "$@"; do
        stat --format '%n %A %a %u %g' "$file"
        getfacl --numeric --no-effective --omit-header "$file"
        getfattr --no-dereference --match - "$file" | grep -v '^#'
        for user in ann bob cid; do
            for right in r w x; do
                $user test -$right "$file" && printf %s $right || printf -- -
            done
            printf ' '
        done
        echo
    done
}}
"""


def sections(place: Path, script: str) -> list[str]:
    """What a script says in a directory, one string a step."""
    place.mkdir(exist_ok=True)
    place.chmod(0o777)
    said = shell("bash", "-c", PRELUDE + script, cwd=place).stdout
    return said.split("## ")[1:]


def compare(mounted: Path, native: Path, script: str, steps: int) -> None:
    ours, theirs = sections(mounted, script), sections(native, script)
    assert len(theirs) >= steps
    different = [(own, other) for own, other in zip(ours, theirs, strict=True) if own != other]
    assert [own for own, _ in different] == []


# ---- set-user-ID and set-group-ID -------------------------------------------------------------------

CHANGES = {
    "write": "printf y | dd of={} conv=notrunc status=none",
    "append": "printf y >>{}",
    "direct": "dd if=/dev/zero of={} bs=4096 count=1 conv=notrunc oflag=direct status=none",
    "shrink": "truncate --size 10 {}",
    "empty": ": >{}",
    "chown to nobody": "perl -e 'exit !chown -1, -1, shift' {}",
    "chgrp": "perl -e 'exit !chown -1, 1000, shift' {}",
    "chown": "perl -e 'exit !chown 77, 1000, shift' {}",
    "touch": "touch --no-create {}",
    "read": "cat {} >/dev/null",
}
MODES = ("6777", "4755", "2767", "3777", "777")
SET_ID = "".join(
    f"""
f={owner}-{mode}-{name.replace(" ", "-")}-{user}
printf content >$f; chown {owner} $f; chmod {mode} $f
step {user} sh -c '{command.format("$0").replace("'", '"')}' $f
"""
    for owner in ("1000:1000", "0:0", "1000:500")
    for mode in MODES
    for name, command in CHANGES.items()
    for user in ("root", "ann", "cid")
)
SET_ID += "step stat --format '%n %a %u %g' *\n"


def test_set_id_bits_go_when_linux_takes_them(place: Path, tmp_path: Path) -> None:
    compare(place, tmp_path / "native", SET_ID, 450)


# ---- access control lists ---------------------------------------------------------------------------

FILES = """
touch f; chmod 640 f
step show f
step setfacl -m u:1000:rw f; step show f
step chmod 600 f; step show f
step chmod 660 f; step show f
step setfacl -m g:500:r f; step show f
step setfacl -m m::r f; step show f
step setfacl -x u:1000 f; step show f
step setfacl -b f; step show f
step setfacl -m u::rw,g::r,o::- f; step show f
step setfacl -m m::rwx f; step show f
step chmod 4755 f; step show f
step setfacl -x m f; step show f
step setfacl -n -m u:2000:rwx f; step show f
step setfacl -k f; step show f
step setfacl -d -m u:1000:r f; step show f
step chown 1000:1000 f; step show f
step ann setfacl -m u:2000:r f; step show f
step bob setfacl -m u:2000:rwx f; step show f
step bob setfacl -b f
step chgrp 500 f; chmod 2775 f
step ann setfacl -m u:2000:rx f; step show f
step setfacl -m u:2000:rwx f; step show f
chmod g+s f; step cid setfacl -m u:2000:r f; step show f
ln f g; step setfacl -m u:3000:w g; step show f
cp -a f h; step show h
mv h i; step show i
step chmod 000 f; step show f; step chmod 7777 f; step show f
"""

DIRECTORIES = """
mkdir d; chmod 755 d
step setfacl -d -m u:1000:rwx,g:500:rx d; step show d
touch d/a; mkdir d/sub; mkfifo d/p; mknod d/n c 1 3; ln -s x d/l
step show d/a d/sub d/p d/n
step getfattr --no-dereference --match - d/l
(umask 077; touch d/b; mkdir d/sub2; mknod d/n2 p); step show d/b d/sub2 d/n2
(umask 000; touch d/c; mkdir -m 700 d/sub3); step show d/c d/sub3
install -m 0600 /dev/null d/inst; step show d/inst
touch d/sub/deep; mkdir d/sub/deeper; step show d/sub/deep d/sub/deeper
step setfacl -d -m u::rwx,g::rx,o::- d; step show d
step setfacl -d --set u::rwx,g::rwx,o::- d; step show d
(umask 077; touch d/min; mkdir d/mind); step show d/min d/mind
step setfacl -k d; step show d
(umask 077; touch d/none); step show d/none
step setfacl -k d; step setfacl -b d
mkdir e; chmod 2770 e; chgrp 500 e
step setfacl -m d:u:2000:rwx,u:2000:rwx e; step show e
step bob touch e/bobs; step show e/bobs
step bob mkdir e/folder; step show e/folder
step ann touch e/anns; step cid touch e/cids; step show e/cids
cp -a e e2; step show e2 e2/bobs
mv e/bobs d/; step show d/bobs
rsync -A -r e/ e3/; step show e3/folder
"""


@pytest.mark.parametrize("script", [FILES, DIRECTORIES], ids=["files", "directories"])
def test_acls(place: Path, tmp_path: Path, script: str) -> None:
    compare(place, tmp_path / "native", script, 30)


ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NOBODY = 0xFFFFFFFF
OWNER, USER, GROUP, MASK, OTHER = (
    struct.pack("<HHI", *entry)
    for entry in ((1, 7, NOBODY), (2, 7, 1000), (4, 5, NOBODY), (16, 7, NOBODY), (32, 4, NOBODY))
)
TWO = struct.pack("<I", 2)
RAW = [
    TWO + OWNER + GROUP + OTHER,
    TWO + OWNER + USER + GROUP + MASK + OTHER,
    TWO + OWNER + USER + GROUP + OTHER,
    TWO + OWNER + GROUP,
    TWO + GROUP + OWNER + OTHER,
    TWO + OWNER + OWNER + GROUP + OTHER,
    TWO + OWNER + USER + USER + GROUP + MASK + OTHER,
    TWO + OWNER + GROUP + MASK + OTHER,
    TWO + OWNER + GROUP + OTHER + OTHER,
    TWO + OWNER + GROUP + OTHER + b"\0",
    TWO + struct.pack("<HHI", 1, 15, NOBODY) + GROUP + OTHER,
    TWO + struct.pack("<HHI", 1, 7, 0) + GROUP + OTHER,
    TWO + OWNER + struct.pack("<HHI", 2, 7, NOBODY) + GROUP + MASK + OTHER,
    TWO + OWNER + struct.pack("<HHI", 64, 7, NOBODY) + GROUP + OTHER,
    TWO,
    TWO[:2],
    struct.pack("<I", 1) + OWNER + GROUP + OTHER,
    struct.pack("<I", 3) + OWNER + GROUP + OTHER,
]


def answer(call: Callable[[], object]) -> object:
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def raw_answers(place: Path) -> list[object]:
    place.mkdir(exist_ok=True)
    file, folder = place / "file", place / "folder"
    file.touch(0o644)
    folder.mkdir(0o755)
    said: list[object] = []
    for value in RAW:
        for target, name in ((file, ACCESS), (folder, DEFAULT), (file, DEFAULT), (folder, ACCESS)):
            for flags in (0, os.XATTR_CREATE, os.XATTR_REPLACE):
                said.append(answer(lambda: os.setxattr(target, name, value, flags)))  # noqa: B023
            said.append((answer(lambda: os.getxattr(target, name)), target.stat().st_mode))  # noqa: B023
        said.append(sorted(os.listxattr(file)))
    for target in (file, folder):
        for name in (ACCESS, DEFAULT, DEFAULT):
            said.append(answer(lambda: os.removexattr(target, name)))  # noqa: B023
            said.append(target.stat().st_mode)
    return said


def test_raw_acls(place: Path, tmp_path: Path) -> None:
    ours, theirs = raw_answers(place), raw_answers(tmp_path / "native")
    assert {"EINVAL", errno.errorcode[errno.EOPNOTSUPP], "EACCES"} <= {
        said for said in theirs if isinstance(said, str)
    }
    assert ours == theirs


def test_acls_outlive_a_remount(tools: MountedFileSystem, place: Path) -> None:
    sections(place, FILES + DIRECTORIES)
    names = "getfacl --recursive --numeric --absolute-names ."
    before = shell("bash", "-c", names, cwd=place).stdout
    assert before.count("mask::") > 10
    tools.remount()
    assert shell("bash", "-c", names, cwd=place).stdout == before


# ---- extended attributes ----------------------------------------------------------------------------

XATTRS = """
touch f; mkdir d; ln -s f l; mkfifo p
for target in f d l p; do
    for name in user.a user. trusted.a trusted. security.a security. system.a other.a a; do
        step setfattr -h -n $name -v value $target
        step getfattr -h --only-values -n $name $target
        step ann setfattr -h -n $name -v other $target
        step ann getfattr -h --only-values -n $name $target
        step getfattr -h -m - $target
        step ann getfattr -h -m - $target
        step setfattr -h -x $name $target
        step setfattr -h -x $name $target
    done
done
"""


def test_namespaces(place: Path, tmp_path: Path) -> None:
    compare(place, tmp_path / "native", XATTRS, 280)


def sizes_and_flags(place: Path) -> list[object]:
    place.mkdir(exist_ok=True)
    file = place / "file"
    file.touch()
    said: list[object] = []
    for name in ("user.a", "user." + "n" * 250, "user." + "n" * 251):
        for value in (b"", b"12345", b"v" * 3000):
            for flags in (os.XATTR_REPLACE, os.XATTR_CREATE, os.XATTR_CREATE, os.XATTR_REPLACE, 0, 4):
                said.append(answer(lambda: os.setxattr(file, name, value, flags)))  # noqa: B023
            said.append(answer(lambda: os.getxattr(file, name)))  # noqa: B023
            said.append(answer(lambda: os.removexattr(file, name)))  # noqa: B023
    said.append(answer(lambda: os.setxattr(file, "user.a", bytes(65537))))
    return said


def test_flags_and_sizes(tools: MountedFileSystem, place: Path, tmp_path: Path) -> None:
    assert sizes_and_flags(place) == sizes_and_flags(tmp_path / "native")
    os.setxattr(place / "file", "user.large", b"v" * 65536)
    tools.remount()
    assert os.getxattr(place / "file", "user.large") == b"v" * 65536


def test_a_capability_goes_with_a_write_and_not_with_a_read(place: Path, tmp_path: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")

    def answers(folder: Path) -> list[object]:
        folder.mkdir(exist_ok=True)
        said: list[object] = []
        for name, command in CHANGES.items():
            file = folder / name.replace(" ", "-")
            file.write_bytes(b"content")
            file.chmod(0o666)
            os.setxattr(file, "security.capability", capability)
            shell("sh", "-c", command.format(file.name), cwd=folder)
            said.append((name, answer(lambda: os.getxattr(file, "security.capability"))))  # noqa: B023
        return said

    theirs = answers(tmp_path / "native")
    assert ("write", "ENODATA") in theirs
    assert ("read", capability) in theirs
    assert answers(place) == theirs


def test_a_umask_is_applied_once(place: Path) -> None:
    shell("sh", "-c", "umask 037; touch file; mkdir folder; mkfifo fifo", cwd=place)
    modes = {path.name: stat.S_IMODE(path.lstat().st_mode) for path in place.iterdir()}
    assert modes == {"file": 0o640, "folder": 0o740, "fifo": 0o640}
