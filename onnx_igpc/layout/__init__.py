"""Which channels each group of K and L reads and makes."""
