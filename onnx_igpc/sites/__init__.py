"""Pointwise convolutions and what they become: find, write, recognise."""
