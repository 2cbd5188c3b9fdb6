"""Images, arrays and shards as batches: one source for calibrating, verifying and training."""
