"""Metadata of one file system: its operations, and the store that holds their result.

`operations` are the words in which every change is told; `store` is the state up to the operation
`applied`, in SQLite, by whole transactions. Nothing in here knows servers, clocks or trio.
"""
