"""Item embeddings: encoders, their store, and the sources that user models read."""
