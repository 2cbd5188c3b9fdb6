"""Reordering the channels of a region of the graph."""
