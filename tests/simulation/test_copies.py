"""How often a byte is copied in our own memory on its way to the reader: by client and servers, counted."""

from __future__ import annotations

import pytest

from scripts.benchmarks.zero_copy import PATTERNS, copies

SEAL = 1.001
"""Share bytes of a whole segment, per byte of plaintext."""


def test_only_part_of_a_segment_is_copied_and_nothing_is_fetched_twice() -> None:
    found = copies()
    assert found.keys() == PATTERNS.keys()
    for name, each in found.items():
        # Answers of up to two segments leave with their header in one system call, which costs a copy.
        assert each.by_servers == (each.fetched if name.startswith("random") else 0), name
        if name == "random, 4 KiB":
            assert each.by_client == 1
        else:
            assert each.by_client == 0, name
            assert 1 < each.fetched < SEAL, name


def test_the_switch_to_compare_with_copies_every_byte_once_more() -> None:
    found = copies("copying")
    assert found["sequential, 1 MiB"].by_client == pytest.approx(1)
    assert found["random, 4 KiB"].by_client == pytest.approx(2)
