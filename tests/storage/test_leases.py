"""The rules of stamps."""

from __future__ import annotations

import pytest

from storage.errors import Refused
from storage.leases import Lease, releases, rises


def test_a_stamp_rises_by_epoch_then_sequence() -> None:
    assert rises(None, (0, 0))
    assert rises((1, 9), (2, 0))
    assert not rises((2, 0), (1, 9))
    assert not rises((1, 1), (1, 1))


def test_a_release_takes_only_what_is_lower() -> None:
    assert releases((1, 1), (1, 2))
    assert not releases((1, 2), (1, 2))
    assert not releases((2, 0), (1, 9))
    assert not releases(None, (9, 9))


@pytest.mark.parametrize(
    "wrong",
    [
        Lease(b"", bytes(16), 0, 0),
        Lease(bytes(16), bytes(17), 0, 0),
        Lease(bytes(16), bytes(16), -1, 0),
        Lease(bytes(16), bytes(16), 0, 2**63),
    ],
)
def test_malformed_leases_are_refused(wrong: Lease) -> None:
    with pytest.raises(Refused):
        wrong.check()
    Lease(bytes(16), bytes(16), 0, 2**63 - 1).check()
