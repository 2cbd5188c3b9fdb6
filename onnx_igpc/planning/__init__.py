"""Which site gets which layout."""
