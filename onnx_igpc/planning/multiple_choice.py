"""The multiple-choice knapsack: one option of each item, the costs within a budget, the least damage.

Dynamic programming over the partial choices that no other one beats in both cost and damage
(Nemhauser and Ullmann, "Discrete dynamic programming and capital allocation", Management Science 15,
1969). Of those, only the ones go on that may lead to something better than the best whole choice that
is known: by what the linear relaxation buys for the budget that is left (Sinha and Zoltners, "The
multiple-choice knapsack problem", Operations Research 27, 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

GAP = 1e-6
"""How far above the least the damage that is found may be, as a part of it."""

# Relative: what sums in another order differ by.
_ROUNDING = 1e-12

Item = tuple[np.ndarray, np.ndarray]
"""Costs and damages of the options of one item."""


def least_damage(
    costs: Sequence[Sequence[float]], damages: Sequence[Sequence[float]], budget: float
) -> list[int] | None:
    """The index of the option of each item for which the sum of damages is least, within :data:`GAP`.

    Args:
        costs: of the options of each item.
        damages: of the same options, not negative.
        budget: what the sum of costs, added up in the order of the items, may be.

    ``None`` where no choice is within the budget.
    """
    items = [
        (np.asarray(cost, dtype=np.float64), np.asarray(damage, dtype=np.float64))
        for cost, damage in zip(costs, damages, strict=True)
    ]
    best = [int(np.lexsort((damage, cost))[0]) for cost, damage in items]
    if _sums(items, best)[0] > budget:
        return None
    least = _sums(items, best)[1]
    cost, damage = np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for rest in _rests(items):
        left = budget - cost
        whole = rest.rounded(left, damage)
        index = int(whole.argmin())
        if whole[index] < least:
            choice = _traced(steps, index) + rest.options(left[index])
            spent, total = _sums(items, choice)
            if spent <= budget and total < least:
                best, least = choice, total
        if len(steps) == len(items):
            break
        going_on = np.flatnonzero(rest.bound(left, damage) < least - GAP * least)
        if not len(going_on):
            break
        cost, damage = cost[going_on], damage[going_on]
        cost, damage, parents, options = _extended(cost, damage, items[len(steps)])
        steps.append((going_on[parents], options))
    return best


def _sums(items: Sequence[Item], choice: Sequence[int]) -> tuple[float, float]:
    """Cost and damage of a whole choice."""
    pairs = list(zip(items, choice, strict=True))
    return (
        sum(float(cost[option]) for (cost, _), option in pairs),
        sum(float(damage[option]) for (_, damage), option in pairs),
    )


def _extended(
    cost: np.ndarray, damage: np.ndarray, item: Item
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Partial choices with one more item that no other one beats: cost, damage, parent and option."""
    every_cost = np.add.outer(cost, item[0]).ravel()
    every_damage = np.add.outer(damage, item[1]).ravel()
    order = np.lexsort((every_damage, every_cost))
    lowest = np.minimum.accumulate(every_damage[order])
    order = order[np.concatenate([[True], lowest[1:] < lowest[:-1]])]
    parents, options = np.divmod(order, len(item[0]))
    return every_cost[order], every_damage[order], parents, options


def _traced(steps: Sequence[tuple[np.ndarray, np.ndarray]], index: int) -> list[int]:
    """The options of a partial choice."""
    chosen = []
    for parents, options in reversed(steps):
        chosen.append(int(options[index]))
        index = int(parents[index])
    return chosen[::-1]


@dataclass(frozen=True)
class _Rest:
    """The relaxation for the items not yet chosen: the least damage that a budget buys.

    ``costs`` and ``damages``, shape (moves + 1,), are its corners, between which it is linear. Each
    corner is a choice: from ``first``, the options of least cost, by so many ``moves`` of (item,
    option).
    """

    costs: np.ndarray
    damages: np.ndarray
    first: list[int]
    moves: list[tuple[int, int]]

    def bound(self, left: np.ndarray, damage: np.ndarray) -> np.ndarray:
        """What partial choices come to at least, with that much budget left."""
        found = damage + np.interp(left, self.costs, self.damages)
        slack = _ROUNDING * float(np.abs(self.costs).max())
        return np.where(left < self.costs[0] - slack, np.inf, found)

    def rounded(self, left: np.ndarray, damage: np.ndarray) -> np.ndarray:
        """What they come to with the last corner within the budget."""
        corner = np.searchsorted(self.costs, left, side="right") - 1
        return np.where(corner < 0, np.inf, damage + self.damages[corner])

    def options(self, left: float) -> list[int]:
        """The choice of that corner."""
        chosen = list(self.first)
        corner = int(np.searchsorted(self.costs, left, side="right")) - 1
        for item, option in self.moves[:corner]:
            chosen[item] = option
        return chosen


def _rests(items: Sequence[Item]) -> list[_Rest]:
    """What remains before the first item, before the second and so on, and after the last."""
    hulls = [_convex_corners(*item) for item in items]
    with np.errstate(over="ignore"):  # a cost that is next to nothing is worth any damage
        moves = [
            (float((damage[a] - damage[b]) / (cost[b] - cost[a])), number, a, b)
            for number, ((cost, damage), hull) in enumerate(zip(items, hulls, strict=True))
            for a, b in pairwise(hull)
        ]
    moves.sort(key=lambda move: -move[0])
    rests = []
    for start in range(len(items) + 1):
        first = [hull[0] for hull in hulls[start:]]
        base = _sums(items[start:], first)
        here = [(number, a, b) for _, number, a, b in moves if number >= start]
        spent = [items[number][0][b] - items[number][0][a] for number, a, b in here]
        saved = [items[number][1][a] - items[number][1][b] for number, a, b in here]
        rests.append(
            _Rest(
                base[0] + np.cumsum([0.0, *spent]),
                base[1] - np.cumsum([0.0, *saved]),
                first,
                [(number - start, b) for number, _, b in here],
            )
        )
    return rests


def _convex_corners(cost: np.ndarray, damage: np.ndarray) -> list[int]:
    """The options on the lower convex hull, from the least cost to the least damage."""
    hull: list[int] = []
    for each in np.lexsort((damage, cost)).tolist():
        if hull and damage[each] >= damage[hull[-1]]:
            continue
        while len(hull) > 1:
            a, b = hull[-2:]
            before = (damage[a] - damage[b]) * (cost[each] - cost[b])
            after = (damage[b] - damage[each]) * (cost[b] - cost[a])
            if before > after:
                break
            hull.pop()
        hull.append(each)
    return hull
