"""The client of gridfs: a mounted file system kept in a grid of storage servers.

Layers, each importing only those to its right (held by import-linter):
cli -> assembly -> control, fuse -> files -> meta, grid -> codec -> storage.
"""

from storage.version import __version__

__all__ = ["__version__"]
