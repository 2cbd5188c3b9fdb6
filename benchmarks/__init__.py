"""What measures the product against published numbers and other tools; never part of a test run."""
