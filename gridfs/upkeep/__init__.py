"""Upkeep: what keeps the shares of a file system complete. Runs beside the mount, least urgent of all.

Imports `gridfs.files` and what lies below.
"""
