"""The mount daemon: into the background, mounted and serving, until everything is in the grid."""
