"""How far two models' outputs are apart, accumulated batch by batch with constant memory."""

from __future__ import annotations

import math

import numpy as np

from onnx_igpc.data.class_folders import background_hint
from onnx_igpc.report.verification import Accuracy, ClassifierResult, OutputDifference

TOP = 5
# Samples and difference of accuracies from which labels that are off by one are no chance.
_FEW = 4
_CLEARLY = 0.25
_TINY = 1e-12


class DifferenceAccumulator:
    """Adds up :class:`OutputDifference` for one output."""

    def __init__(self, name: str, classes: bool = False) -> None:
        self._name = name
        self._classes = classes
        self._elements = self._compared = 0
        self._nonfinite = [0, 0, 0]
        self._max_abs = self._sum_abs = self._max_original = 0.0
        self._difference_square = 0.0
        self._dot = self._original_square = self._candidate_square = 0.0

    def add(self, original: np.ndarray, candidate: np.ndarray) -> None:
        """Add one batch; both arrays have the same shape. Integers and booleans count as numbers."""
        if self._classes:
            original, candidate = np.zeros(original.shape), original != candidate
        b = np.asarray(original, np.float64).reshape(-1)
        a = np.asarray(candidate, np.float64).reshape(-1)
        self._elements += b.size
        finite_b, finite_a = np.isfinite(b), np.isfinite(a)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        for i, mask in enumerate((~finite_b, ~finite_a, ~finite_a & ~same)):
            self._nonfinite[i] += int(np.count_nonzero(mask))
        both = finite_a & finite_b
        if not both.all():
            a, b = a[both], b[both]
        if not a.size:
            return
        difference = np.abs(a - b)
        self._compared += a.size
        self._max_abs = max(self._max_abs, float(difference.max()))
        self._sum_abs += float(difference.sum())
        self._max_original = max(self._max_original, float(np.abs(b).max()))
        self._difference_square += float(difference @ difference)
        self._dot += float(a @ b)
        self._original_square += float(b @ b)
        self._candidate_square += float(a @ a)

    def result(self) -> OutputDifference:
        """What was added so far."""
        norms = math.sqrt(self._original_square) * math.sqrt(self._candidate_square)
        return OutputDifference(
            name=self._name,
            elements=self._elements,
            max_abs=self._max_abs,
            mean_abs=self._sum_abs / self._compared if self._compared else 0.0,
            relative=self._max_abs / self._max_original if self._max_original else None,
            relative_norm=(
                math.sqrt(self._difference_square / self._original_square)
                if self._original_square
                else None
            ),
            max_original=self._max_original,
            cosine=min(1.0, max(-1.0, self._dot / norms)) if norms else None,
            nonfinite_original=self._nonfinite[0],
            nonfinite_candidate=self._nonfinite[1],
            new_nonfinite=self._nonfinite[2],
            agreement=(
                1.0 - self._sum_abs / self._elements if self._classes and self._elements else None
            ),
        )


class ClassifierAccumulator:
    """Counts agreement and hits over class scores of shape [samples, classes]."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._samples = self._agree = self._labelled = self._classes = 0
        self._hits = np.zeros((2, 2), np.int64)  # original, candidate x top-1, top-5
        self._kl = self._confidence = 0.0
        self._seen: set[int] = set()
        self._shifted = {-1: 0, 1: 0}  # hits of the original by labels one class further

    def add(self, original: np.ndarray, candidate: np.ndarray, labels: np.ndarray | None) -> None:
        """Add one batch of scores; labels int[samples] in [0, classes) or None."""
        self._samples += len(original)
        self._classes = original.shape[1]
        known = ~(np.isnan(original).any(axis=1) | np.isnan(candidate).any(axis=1))
        first, second = original.argmax(axis=1), candidate.argmax(axis=1)
        self._agree += int(np.count_nonzero(known & (first == second)))
        finite = np.isfinite(original).all() and np.isfinite(candidate).all()
        self._kl += len(original) * kl_divergence(original, candidate) if finite else math.nan
        self._confidence += float(distribution(original)[0].max(axis=1).sum())
        if labels is None:
            return
        self._labelled += len(labels)
        self._seen.update(labels.tolist())
        for shift in self._shifted:
            self._shifted[shift] += int(np.count_nonzero(known & (first == labels + shift)))
        for i, scores in enumerate((original, candidate)):
            ranks = label_ranks(scores, labels)
            self._hits[i] += (np.count_nonzero(ranks < 1), np.count_nonzero(ranks < TOP))

    def label_doubt(self, offset: int) -> str | None:
        """What to say where labels seem to be off by one; ``offset`` is what was added to them already."""
        if not self._labelled:
            return None
        own = int(self._hits[0, 0]) / self._labelled
        shift, hits = max(self._shifted.items(), key=lambda each: each[1])
        further = hits / self._labelled
        if self._labelled >= _FEW and further >= own + _CLEARLY and further >= 2 * own:
            return (
                f"with the labels shifted by {shift} the original's accuracy is {further:.1%} rather "
                f"than {own:.1%}: give `label_offset` {offset + shift}"
            )
        if offset or own > self._shifted[1] / self._labelled:
            return None
        return background_hint(np.array(sorted(self._seen)), self._classes)

    def result(self) -> ClassifierResult:
        """What was added so far; at least one sample."""
        accuracies = [
            Accuracy(
                int(top1) / self._labelled,
                int(top5) / self._labelled if self._classes > TOP else None,
            )
            if self._labelled
            else None
            for top1, top5 in self._hits
        ]
        return ClassifierResult(
            scores=self.name,
            classes=self._classes,
            samples=self._samples,
            agreement=self._agree / self._samples,
            original=accuracies[0],
            candidate=accuracies[1],
            kl=None if math.isnan(self._kl) else self._kl / self._samples,
            confidence=None if math.isnan(self._kl) else self._confidence / self._samples,
        )


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rank of each label's score among its sample's, 0 for the highest; int[samples].

    Among equal scores the lower class comes first, as argmax has it; a score that is NaN comes last.
    """
    scores = np.where(np.isnan(scores), -np.inf, scores.astype(np.float64))
    own = scores[np.arange(len(labels)), labels][:, np.newaxis]
    before = np.arange(scores.shape[1])[np.newaxis] < labels[:, np.newaxis]
    return np.asarray(np.count_nonzero((scores > own) | ((scores == own) & before), axis=1))


def class_scores(values: np.ndarray) -> np.ndarray | None:
    """An output as [samples, classes], all other dimensions being 1; None where it is not that.

    The batch dimension stays, also where it is 1.
    """
    if values.ndim < 2:
        return None
    wide = [size for size in values.shape[1:] if size != 1]
    return values.reshape(len(values), -1) if len(wide) == 1 else None


def kl_divergence(before: np.ndarray, after: np.ndarray) -> float:
    """Mean KL(before || after) over rows, in nats; scores of shape (N, classes).

    Rows that are probabilities already are taken as they are, others through a softmax.
    """
    p, log_p = distribution(before)
    _, log_q = distribution(after)
    return max(float(np.mean(np.sum(p * (log_p - log_q), axis=1))), 0.0)


def distribution(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and their logarithms, of scores of shape (N, classes)."""
    values = scores.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, atol=1e-3):
        clipped = np.clip(values, _TINY, None)
        return values, np.log(clipped)
    shifted = values - values.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(log_p), log_p
