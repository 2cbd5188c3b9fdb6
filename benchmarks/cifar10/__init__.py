"""The proof on CIFAR-10: a baseline is trained, compressed in several ways, and trained back."""
