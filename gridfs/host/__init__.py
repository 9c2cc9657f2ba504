"""This machine: a file system's folder, what is mounted where, and passphrases."""
