"""Writes the training images of the digits model: ``python -m sample_models.digits_data -o digits_train.npz``.

The file has the model input by name, float32 (1437, 1, 8, 8) in 0..1, and ``labels``, int64 (1437,): the
part of scikit-learn's handwritten digits on which ``digits_net.onnx`` was trained. The other 360 images
are in ``digits_test.npz`` and in no training data. scikit-learn ships the images: nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from sample_models.train_digits import Recipe, load

INPUT = "input"


def write(path: Path) -> None:
    """Write the training split to an .npz file."""
    digits = load(Recipe())
    with path.open("wb") as file:
        np.savez_compressed(file, **{INPUT: digits.train, "labels": digits.train_labels})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the training images of the digits model.")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.npz")
    write(parser.parse_args().output)


if __name__ == "__main__":
    main()
