"""Searching for better groups of channels: exchanges of two channels between groups.

What an exchange would bring is estimated for all pairs at once, in closed form, and then measured by
a refit of the most promising ones together; if that does not improve, of half of them, and so on.
The measured error of the groups never rises.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnx_igpc.fitting.variable_projection import ProjectionProblem

# Relative: an exchange must bring this much to be kept.
_LEAST_GAIN = 1e-5
# Candidates of each pair of groups, and how many exchanges are tried one by one at the end.
_CANDIDATES = 12
_SINGLE_TRIES = 6
# Among up to so many channels, exchanges that are estimated to lose are tried, too: it takes little, and
# several together may gain.
_FEW_CHANNELS = 256
# A channel that its group predicts almost entirely is worth little, and its estimate is not exact.
_LEAST_NEW_VARIANCE = 1e-3

Exchange = tuple[int, int]


def search_groups(
    problem: ProjectionProblem, ranks: Sequence[int], refits: int, rounds: int = 2
) -> ProjectionProblem:
    """The problem with channels exchanged between its groups so that its error is less.

    Args:
        problem: with disjoint groups, solved for ``ranks``; it is not changed.
        ranks: rows of each group.
        refits: how many measurements to make at most.
        rounds: over the groups, in each measurement.
    """
    error = problem.objective()
    trusted = 0
    while refits > 0:
        exchanges = _promising(exchange_gains(problem), _owners(problem))
        trials = _trial_sizes(len(exchanges), trusted)
        tried = [exchanges[:size] for size in trials]
        tried += [[each] for each in exchanges[1:_SINGLE_TRIES]]
        for chosen in tried[:refits]:
            refits -= 1
            other = _exchanged(problem, chosen)
            left = other.solve(ranks, 0.0, rounds)
            if left < error * (1.0 - _LEAST_GAIN):
                problem, error, trusted = other, left, len(chosen)
                break
        else:
            break
    return problem


def exchange_gains(problem: ProjectionProblem) -> np.ndarray:
    """By how much moving a channel to a group would reduce the squared error, shape (C, groups).

    An estimate, with L and the other groups' rows as they are: a channel that leaves its group takes
    along what the others of the group cannot predict of it; in its new group it brings what is new
    there. Zero for a channel's own group.
    """
    S, C = problem.S, problem.S.shape[0]
    L, K, parts = problem.best_l(problem.T), problem.k_matrix(), problem.row_slices()
    ridge = 1e-9 * max(float(np.trace(S)) / C, 1e-100)
    variance = np.diagonal(S)
    remaining = L.T @ ((problem.T - L @ K) @ S)
    inner = L.T @ L
    # What a channel has of its own: the covariance of that part with all channels.
    own = np.zeros((C, C))
    predictions = []
    for columns in problem.columns:
        inverse = np.linalg.inv(S[np.ix_(columns, columns)] + ridge * np.eye(len(columns)))
        own[columns] = (inverse / np.diagonal(inverse)[:, None]) @ S[columns]
        predictions.append(inverse @ S[columns])
    given_up = inner @ K
    leaving = np.einsum("dc,dc->c", K, given_up) * np.diagonal(own)
    gains = np.zeros((C, len(problem.columns)))
    pairs = zip(problem.columns, predictions, parts, strict=True)
    for index, (columns, prediction, rows) in enumerate(pairs):
        if rows.stop == rows.start:
            continue
        new = variance - np.einsum("ic,ic->c", S[columns], prediction)
        shared = np.diagonal(own) - np.einsum("ci,ic->c", own[:, columns], prediction)
        pull = remaining[rows] + given_up[rows] * shared
        gram = inner[rows, rows]
        gram = gram + 1e-10 * max(float(np.trace(gram)), 1e-100) * np.eye(len(gram))
        joining = np.einsum("dc,dc->c", np.linalg.solve(gram, pull), pull)
        gains[:, index] = joining / np.maximum(new, _LEAST_NEW_VARIANCE * variance + ridge)
    gains -= leaving[:, None]
    gains[np.arange(C), _owners(problem)] = 0.0
    return gains


def _owners(problem: ProjectionProblem) -> np.ndarray:
    owners = np.zeros(problem.S.shape[0], dtype=int)
    for index, columns in enumerate(problem.columns):
        owners[columns] = index
    return owners


def _promising(gains: np.ndarray, owners: np.ndarray) -> list[Exchange]:
    """Exchanges of which no two touch the same channel, the best first."""
    parts: list[list[np.ndarray]] = [[], [], []]
    for a in range(gains.shape[1]):
        for b in range(a + 1, gains.shape[1]):
            first, second = np.flatnonzero(owners == a), np.flatnonzero(owners == b)
            first = first[np.argsort(-gains[first, b], kind="stable")[:_CANDIDATES]]
            second = second[np.argsort(-gains[second, a], kind="stable")[:_CANDIDATES]]
            both = gains[first, b][:, None] + gains[second, a][None]
            for part, values in zip(parts, (both, first[:, None], second[None]), strict=True):
                part.append(np.broadcast_to(values, both.shape).ravel())
    values, first, second = (np.concatenate(part) for part in parts)
    order = np.argsort(-values, kind="stable")
    if len(owners) > _FEW_CHANNELS:
        order = order[values[order] > 0.0]
    used: set[int] = set()
    chosen = []
    for x, y in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if x not in used and y not in used:
            used |= {x, y}
            chosen.append((x, y))
    return chosen


def _trial_sizes(available: int, trusted: int) -> list[int]:
    """How many exchanges to try at once: twice what worked last, then half of it, down to one."""
    size = min(available, 2 * trusted if trusted else available)
    sizes = []
    while size >= 1:
        sizes.append(size)
        size //= 2
    return sizes


def _exchanged(problem: ProjectionProblem, exchanges: Sequence[Exchange]) -> ProjectionProblem:
    """The problem with these channels exchanged; their entries in K start at zero."""
    columns = [each.copy() for each in problem.columns]
    rows = [each.copy() for each in problem.K]
    place = {int(c): (g, i) for g, each in enumerate(columns) for i, c in enumerate(each)}
    for x, y in exchanges:
        (a, i), (b, j) = place[x], place[y]
        columns[a][i], columns[b][j] = y, x
        rows[a][:, i] = 0.0
        rows[b][:, j] = 0.0
    return problem.with_columns(columns, rows)
