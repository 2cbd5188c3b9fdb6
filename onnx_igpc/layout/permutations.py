"""Orders of channels: permutations, and what they do to blocks of consecutive channels.

An order is a permutation p of the channels of a tensor t; the reordered tensor is ``t[:, p]``.
"""

from __future__ import annotations

from collections.abc import Sequence


def interleave_permutation(channels: int, step: int) -> tuple[int, ...]:
    """Indices of INTERLEAVE(x, step): ``out[p] = in[perm[p]]``, every ``step``-th channel first.

    ``channels`` need not be a multiple of ``step``; a step of 0 or 1 is the identity.
    """
    if step <= 1:
        return tuple(range(channels))
    return tuple(i for start in range(step) for i in range(start, channels, step))


def compose_gathers(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """Indices of one gather that equals gathering by ``first`` and then by ``second``."""
    return tuple(first[i] for i in second)


def invert_permutation(permutation: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes ``permutation``."""
    inverse = [0] * len(permutation)
    for position, source in enumerate(permutation):
        inverse[source] = position
    return tuple(inverse)


Order = tuple[int, ...]


def is_order(indices: Sequence[int]) -> bool:
    """Whether ``indices`` has each number from 0 to its length less one exactly once."""
    return sorted(indices) == list(range(len(indices)))


def is_identity(order: Sequence[int]) -> bool:
    """Whether nothing moves."""
    return list(order) == list(range(len(order)))


def block_order(order: Sequence[int], blocks: int) -> Order | None:
    """The order of ``blocks`` equal blocks of channels, if every block stays together.

    Entry b says which block lies in place b; within the blocks channels may lie in any order.
    ``None`` if the order takes channels from one block to several, or the blocks cannot be equal.
    """
    size, left = divmod(len(order), blocks)
    if left or not size:
        return None
    placed = []
    for start in range(0, len(order), size):
        sources = {channel // size for channel in order[start : start + size]}
        if len(sources) > 1:
            return None
        placed.append(sources.pop())
    return tuple(placed)


def spread_order(blocks: Sequence[int], size: int) -> Order:
    """The order of channels that moves whole blocks of ``size`` as ``blocks`` says."""
    return tuple(block * size + offset for block in blocks for offset in range(size))
