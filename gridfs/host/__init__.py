"""This machine: a file system's folder, what is mounted where, passphrases, and the real ports."""
