"""Tests; `tests.processes` and `tests.simulation` are what they stand on."""
