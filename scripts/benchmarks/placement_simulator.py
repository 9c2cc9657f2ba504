"""Placement of very many packs on very many servers, drawn: failure domains first, then a server in each.

The rule is that of `gridfs.grid.placement`, weighted rendezvous hashing, in two steps: a pack scores all
domains (weight: that of all their servers), takes the best n, and in each of them the best server. So it
costs domains + n x (servers in a domain) hashes, not one for each server of the grid. The least of several
scores is distributed as one score of their weights together, so servers share packs as they do where each of
them is scored first, which a servers file (1024 lines at most) can afford. Needs numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096
"""Packs drawn at once."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SMALLEST = 2.0**-54

Ids = NDArray[np.uint64]
Numbers = NDArray[np.int64]
Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """Servers by domain: row d holds those of domain d; a weight of 0 is a server that is not there."""

    ids: Ids
    weights: Weights
    domain_ids: Ids

    @property
    def servers(self) -> int:
        return int(np.count_nonzero(self.weights))

    def without(self, domain: int, place: int) -> Population:
        """The same with one server less."""
        weights = self.weights.copy()
        weights[domain, place] = 0.0
        return replace(self, weights=weights)

    def with_domain(self) -> Population:
        """The same with one more domain, like the last."""
        first = np.uint64(self.ids.max() + np.uint64(1))
        ids = np.arange(self.ids.shape[1], dtype=np.uint64) + first
        domain_ids = np.append(self.domain_ids, self.domain_ids.max() + np.uint64(1))
        return Population(np.vstack([self.ids, ids]), np.vstack([self.weights, self.weights[-1]]), domain_ids)


def population(domains: int, servers_each: int, seed: int) -> Population:
    """Servers of three sizes, mixed by chance."""
    count = domains * servers_each
    ids = np.arange(count, dtype=np.uint64).reshape(domains, servers_each)
    sizes = np.random.default_rng(seed).choice([1.0, 2.0, 4.0], size=(domains, servers_each))
    domain_ids = np.arange(domains, dtype=np.uint64) + np.uint64(1 << 40)
    return Population(ids, sizes, domain_ids)


def draw(found: Population, packs: int, n: int) -> Numbers:
    """The places of each pack: an array of packs x n numbers, domain * (servers in a domain) + place."""
    placed = np.empty((packs, n), dtype=np.int64)
    domain_weights = found.weights.sum(axis=1)
    width = found.ids.shape[1]
    for low in range(0, packs, CHUNK):
        pack_ids = np.arange(low, min(low + CHUNK, packs), dtype=np.uint64)
        scores = _scores(pack_ids[:, None], found.domain_ids[None, :], domain_weights[None, :])
        best = np.argpartition(scores, n - 1, axis=1)[:, :n]
        best = np.take_along_axis(best, np.argsort(np.take_along_axis(scores, best, 1), axis=1), 1)
        inside = _scores(pack_ids[:, None, None], found.ids[best], found.weights[best])
        placed[low : low + len(pack_ids)] = best * width + inside.argmin(axis=2)
    return placed


def _scores(packs: Ids, servers: Ids, weights: Weights) -> Weights:
    """The smallest is the best, as in `placement`: -ln(hash) / weight."""
    points = (_mixed(_mixed(packs) ^ (servers * _GOLDEN)) >> np.uint64(11)) * 2.0**-53 + _SMALLEST
    with np.errstate(divide="ignore"):
        scores: Weights = -np.log(points) / weights
    return scores


def _mixed(values: Ids) -> Ids:
    """splitmix64."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


# ---- what is to be known ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Balance:
    """How full servers are, against their weight. Deviations as parts of the mean."""

    deviation: float
    by_chance: float
    """What so few packs deviate by chance alone."""
    scaled: float
    """The deviation with `scale` times as many packs."""
    fullest: float
    """The fullest server against its fair part."""


def balance(found: Population, placed: Numbers, scale: float) -> Balance:
    weights = found.weights.ravel()
    there = weights > 0
    counts = np.bincount(placed.ravel(), minlength=len(weights))[there]
    fair = placed.size * weights[there] / weights.sum()
    relative = counts / fair
    chance = float(np.mean(1 / fair))
    variance = float(np.var(relative))
    beyond = max(0.0, variance - chance)
    return Balance(variance**0.5, chance**0.5, (beyond + chance / scale) ** 0.5, float(relative.max()))


def moved(before: Numbers, after: Numbers) -> float:
    """The part of all shares that lie on another server than before."""
    stays = sum(np.any(after == before[:, place, None], axis=1).sum() for place in range(before.shape[1]))
    return 1 - float(stays) / before.size


def lost(placed: Numbers, dead: Numbers, servers: int, k: int) -> float:
    """The part of all packs that have fewer than k shares left when these servers are gone at once."""
    gone = np.zeros(servers, dtype=bool)
    gone[dead] = True
    left = placed.shape[1] - gone[placed].sum(axis=1)
    return float(np.mean(left < k))


def helpers(placed: Numbers, dead: int) -> tuple[int, int]:
    """Shares on a server, and how many others hold shares of the same packs."""
    packs = placed[np.any(placed == dead, axis=1)]
    return len(packs), len(np.unique(packs)) - 1
