"""From pictures, texts and regions to batches; knows nothing of models."""
