"""The storage server of gridfs: keeps shares and head logs for clients it cannot read.

Layers, each importing only those to its right:
cli -> server, client -> transport -> service -> backends, leases, head log -> wire, format -> ports.
"""

from storage.version import __version__

__all__ = ["__version__"]
