"""Where the mount answers otherwise than the reference, and why that cannot be helped from a FUSE server.

Each case named here is run and must differ: the table cannot outlive its reasons.
"""

from __future__ import annotations

_NO_FALLOCATE = "pyfuse3 carries no fallocate: EOPNOTSUPP, and glibc's posix_fallocate writes instead"
_NO_SEEK = "pyfuse3 carries no lseek: the kernel takes the whole file for data, as POSIX allows"
_OPEN_IS_READ = "reads from the page cache reach nobody, so an open to read moves the atime (relatime)"

DIFFERENT: dict[str, str] = {
    "test_fallocate[allocate]": _NO_FALLOCATE,
    "test_fallocate[keep-size]": _NO_FALLOCATE,
    "test_fallocate[punch-hole]": _NO_FALLOCATE,
    "test_fallocate[zero-range]": _NO_FALLOCATE,
    "test_posix_fallocate_of_a_handle_that_appends": _NO_FALLOCATE + ", but not through O_APPEND (EBADF)",
    "test_seek_data_and_hole_of_a_sparse_file": _NO_SEEK,
    "test_ioctl[flags]": "pyfuse3 carries no ioctl: chattr and lsattr get ENOTTY",
    "test_rename_with_other_flags[whiteout]": "whiteouts are for the upper layer of overlayfs: EINVAL",
    "test_temporary_files_without_a_name": "O_TMPFILE: pyfuse3 carries none, EOPNOTSUPP",
    "test_times_of_an_object[open-read-file]": _OPEN_IS_READ,
    "test_times_of_an_open_file[open-reading]": _OPEN_IS_READ,
    "test_truncate_changes_mtime_whatever_the_length[7]": (
        "truncate(2) to the same length: the kernel keeps the times of what it caches, as POSIX allows"
    ),
}
