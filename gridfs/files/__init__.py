"""Files as users see them: namespace, contents, the spool, write-behind, read-ahead.

`gridfs.files` carries receipts between `gridfs.grid` (which knows no inodes) and `gridfs.meta` (which
knows no servers). See SPEC.md for the spool's format and its crash analysis.
"""
