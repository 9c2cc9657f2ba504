"""`python -m gridfs.cli`, for where the command is not installed."""

from gridfs.cli import main

main()
