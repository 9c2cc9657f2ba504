"""Formats that outlive a process: shares, head records, entries of append-only files. Pure; see SPEC.md."""
