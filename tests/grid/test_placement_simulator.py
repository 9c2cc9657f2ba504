"""The placement simulator of scripts/bench: its rule, on populations small enough to see through."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.benchmarks.placement_simulator import (
    balance,
    draw,
    helpers,
    lost,
    moved,
    population,
)

PACKS, N, K = 20_000, 6, 4
DOMAINS, EACH = 20, 10


def test_a_pack_has_its_shares_in_as_many_domains() -> None:
    placed = draw(population(DOMAINS, EACH, 1), PACKS, N)
    domains = np.sort(placed // EACH, axis=1)
    assert (np.diff(domains, axis=1) > 0).all()


def test_servers_are_as_full_as_their_weight_says() -> None:
    servers = population(DOMAINS, EACH, 1)
    found = balance(servers, draw(servers, PACKS, N), 1.0)
    # Six of twenty domains: one of twice the weight cannot be in twice as many packs.
    assert found.deviation < 0.1
    assert found.fullest < 1.3


def test_one_server_less_moves_what_it_had_and_as_much_again_at_most() -> None:
    servers = population(DOMAINS, EACH, 1)
    before = draw(servers, PACKS, N)
    fewer = servers.without(3, 5)
    assert fewer.servers == servers.servers - 1
    after = draw(fewer, PACKS, N)
    assert not (after == 3 * EACH + 5).any()
    had = float((before == 3 * EACH + 5).mean())
    assert had <= moved(before, after) <= 2.5 * had


def test_a_new_domain_takes_its_part_and_nothing_else_moves() -> None:
    servers = population(DOMAINS, EACH, 1)
    before, after = draw(servers, PACKS, N), draw(servers.with_domain(), PACKS, N)
    assert moved(before, after) == pytest.approx(float((after >= DOMAINS * EACH).mean()))


def test_two_domains_may_burn_and_three_may_not() -> None:
    placed = draw(population(DOMAINS, EACH, 1), PACKS, N)
    total = DOMAINS * EACH
    assert lost(placed, np.arange(2 * EACH), total, K) == 0
    assert lost(placed, np.arange(3 * EACH), total, K) > 0
    shares, others = helpers(placed, 0)
    assert shares == int((placed == 0).sum())
    assert 0 < others < total
