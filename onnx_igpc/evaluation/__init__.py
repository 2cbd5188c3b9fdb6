"""Measuring written models: verify, benchmark, damage, checks."""
