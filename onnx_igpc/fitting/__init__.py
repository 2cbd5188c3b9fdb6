"""One layer: from a dense weight, and moments of its input, to K and L."""
