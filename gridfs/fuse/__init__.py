"""The kernel's side: pyfuse3 in and out. Nothing else in gridfs imports pyfuse3."""
