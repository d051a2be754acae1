"""The training run: batches, loss, adapter, checkpoints."""
