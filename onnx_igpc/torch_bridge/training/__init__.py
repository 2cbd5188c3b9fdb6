"""Training a compressed model against the original."""
