"""Factors and eigenvectors of the positive semi-definite matrices that a fit without the sum solves."""

from __future__ import annotations

import numpy as np

# Relative to the mean of the diagonal: lets rows be zero or alike.
_RIDGE = 1e-12


def ridge(gram: np.ndarray) -> float:
    """What lets rows be zero or alike."""
    return _RIDGE * max(float(np.trace(gram)) / max(len(gram), 1), 1e-100)


def lower_root(gram: np.ndarray, ridges: np.ndarray) -> np.ndarray:
    """The Cholesky factor of a positive semi-definite matrix, given in its lower triangle, with
    ``ridges`` added to the diagonal, as large as they must be. ``gram`` is overwritten.
    """
    diagonal = np.diagonal(gram).copy()
    while True:
        np.fill_diagonal(gram, diagonal + ridges)
        try:
            return np.linalg.cholesky(gram)
        except np.linalg.LinAlgError:
            ridges = ridges * 100.0


def solve_lower(lower: np.ndarray, right: np.ndarray, transposed: bool = False) -> np.ndarray:
    """X with ``lower X = right`` for a lower triangular matrix, or with its transpose."""
    from scipy.linalg.lapack import dtrtrs

    if not right.size:
        return np.zeros(right.shape)
    # LAPACK reads columns: what lies there is the transpose.
    solved, _ = dtrtrs(lower.T, right, lower=0, trans=0 if transposed else 1)
    return np.asarray(solved)


def leading(gram: np.ndarray, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues of a positive semi-definite matrix, the largest first, and the first vectors."""
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1][:, :count]
