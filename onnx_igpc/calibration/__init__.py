"""Statistics of sites on data, and fits to them."""
