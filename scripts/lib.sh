# Shared by the scripts beside it: the layout, Debian packages, the virtual environment, mounts.
# Sourced, never run. `set_up` does nothing, and says nothing, when everything is there.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
program=${0##*/}

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "$program" "$*" >&2
    exit 1
}

usage_error() {
    printf '%s: %s (see scripts/%s --help)\n' "$program" "$*" "$program" >&2
    exit 2
}

# Prints the comment at the head of the calling script: its help.
print_help() {
    sed -n '2,/^[^#]/{/^#/{s/^# \{0,1\}//;p}}' "$0"
}

# ---- where a user's things are -------------------------------------------------------------------

# Sets and exports GRIDFS_HOME (absolute), and sets default_mountpoint, grid and file_system.
# Mounting inside a GRIDFS_HOME of one's own keeps several grids of one user apart.
locate_home() {
    if [[ -n ${GRIDFS_HOME:-} ]]; then
        GRIDFS_HOME=$(realpath -m -- "$GRIDFS_HOME")
        default_mountpoint=$GRIDFS_HOME/mnt
    else
        [[ -n ${HOME:-} ]] || die "neither HOME nor GRIDFS_HOME is set: set GRIDFS_HOME to a directory"
        GRIDFS_HOME=$(realpath -m -- "${XDG_DATA_HOME:-$HOME/.local/share}/gridfs")
        default_mountpoint=$HOME/gridfs
    fi
    export GRIDFS_HOME
    grid=$GRIDFS_HOME/local-grid
    file_system=$GRIDFS_HOME/local
    mountpoint_record=$GRIDFS_HOME/local-grid/mountpoint
}

# The path with its directory resolved and its last part as it is: a dead mount cannot be resolved.
absolute_path() {
    local parent name
    parent=$(realpath -m -- "$(dirname -- "$1")")
    name=$(basename -- "$1")
    case $name in
        . | ..) realpath -m -- "$1" ;;
        /) echo / ;;
        *) echo "${parent%/}/$name" ;;
    esac
}

# Is something mounted on this path? Read from the kernel's table, so that a dead mount counts too.
is_mounted() {
    local wanted=$1 target rest
    wanted=${wanted//\\/\\134}
    wanted=${wanted// /\\040}
    wanted=${wanted//$'\t'/\\011}
    wanted=${wanted//$'\n'/\\012}
    while read -r _ _ _ _ target rest; do
        [[ $target == "$wanted" ]] && return 0
    done </proc/self/mountinfo
    return 1
}

# Is the mount on this path served? A daemon that was killed leaves "not connected" behind. It is asked for
# its numbers (statfs): attributes may still come from the cache of the kernel.
is_alive() { timeout 20 stat --file-system -- "$1" >/dev/null 2>&1; }

detach() {
    if ((EUID == 0)); then
        umount --lazy --internal-only -- "$1"
    else
        fusermount3 -u -z -- "$1"
    fi
}

# ---- Debian packages -----------------------------------------------------------------------------

# Installs the packages named; without the right to do so, says what is missing and exits.
install_packages() {
    local as_root=()
    (($#)) || return 0
    command -v apt-get >/dev/null ||
        die "this needs what Debian calls: $*. Install it by the means of this system, then try again"
    if ((EUID != 0)); then
        if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
            as_root=(sudo -n)
        else
            die "packages are missing. As root: apt-get install $*"
        fi
    fi
    say "Installing Debian packages: $*"
    "${as_root[@]}" apt-get update || say "(the package lists could not all be renewed; going on)"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" ||
        die "the packages above could not be installed: $*"
}

# Reads lines "COMMAND PACKAGE"; prints the packages whose command is not there.
packages_without_command() {
    local name package
    while read -r name package; do
        [[ -z $name ]] || PATH=$PATH:/usr/sbin:/sbin command -v "$name" >/dev/null || echo "$package"
    done
}

# ---- Python and the virtual environment ----------------------------------------------------------

python_lacks_nothing() {
    "$1" -c 'import ensurepip, os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

# Sets `python` to an interpreter of 3.11 or newer, the system's own first: distributions build theirs with
# profiles, and one built at home took a fifth more CPU (measured). One from elsewhere counts
# only with headers and ensurepip, since apt cannot give it those.
find_python() {
    local name path
    python=
    for name in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        path=$(command -v "$name") || continue
        "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        path=$("$path" -c 'import sys; print(sys.executable)')
        if [[ $path == /usr/bin/* ]] || python_lacks_nothing "$path"; then
            python=$path
            return 0
        fi
    done
    return 1
}

# Prints the packages that building and running gridfs needs and that are not there.
missing_packages() {
    packages_without_command <<'END'
fusermount3 fuse3
pkg-config pkg-config
gcc gcc
END
    pkg-config --exists fuse3 2>/dev/null || echo libfuse3-dev
    [[ -e /usr/include/stdio.h ]] || echo libc6-dev
    if [[ $python == /usr/bin/python3.* ]]; then
        python_lacks_nothing "$python" || echo "${python##*/}-venv ${python##*/}-dev"
    elif [[ $python == /usr/bin/* ]]; then
        python_lacks_nothing "$python" || echo python3-venv python3-dev
    fi
}

# What the virtual environment must have been made from to be good: the first line of its stamp.
wanted_stamp() { sha256sum <<<"$root $python $(sha256sum <"$root/pyproject.toml")" | cut -d' ' -f1; }

# Is the virtual environment good for the extra ($1: mount or dev, which includes mount)?
venv_is_ready() {
    local stamp extra
    [[ -r $venv/.gridfs-stamp ]] && "$venv/bin/python" -c '' 2>/dev/null || return 1
    { read -r stamp && read -r extra; } <"$venv/.gridfs-stamp" || return 1
    [[ $stamp == "$(wanted_stamp)" ]] && [[ $extra == "$1" || $extra == dev ]]
}

make_venv() {
    if ! "$venv/bin/python" -c 'import pip' 2>/dev/null ||
        [[ $(readlink -f "$venv/bin/python") != "$(readlink -f "$python")" ]]; then
        say "Making a virtual environment in $venv ($("$python" --version))"
        "$python" -m venv --clear "$venv"
    fi
    say "Installing gridfs and what it needs into $venv"
    rm -f "$venv/.gridfs-stamp"
    (cd "$root" && "$venv/bin/python" -m pip install --disable-pip-version-check -e ".[$1]") ||
        die "pip could not install gridfs: see above"
    { wanted_stamp && echo "$1"; } >"$venv/.gridfs-stamp"
}

# Debian packages and the virtual environment with the extra $1; further packages as arguments.
set_up() {
    local extra=$1 packages=()
    shift
    # One set-up at a time in this tree. The lock is on the directory, so no file is left behind.
    exec 9<"$root"
    flock 9
    if ! find_python; then
        command -v python3 >/dev/null &&
            die "Python 3.11 or newer is needed (Debian 12 and Ubuntu 24.04 bring it); found $(python3 --version)"
        install_packages python3
        find_python || die "Python 3.11 or newer is needed; apt's python3 is older"
    fi
    read -r -a packages -d '' < <(missing_packages; echo "$@") || true
    install_packages "${packages[@]}"
    venv_is_ready "$extra" || make_venv "$extra"
    exec 9<&-
}
