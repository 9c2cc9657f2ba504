"""Talking to a mount daemon: one JSON line per message over a Unix socket in the file system's folder."""
