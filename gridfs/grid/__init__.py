"""The grid of storage servers, as a file system's client sees it.

Pure: `roster` (which servers there are), `placement` (which of them for a pack), `planner` (what to ask
of whom), `health` (whom not to ask first). On the decisions of these act `downloader` and `uploader`,
which know servers only as the port `ports.GridServer`. Nothing here knows inodes or file names.
"""
