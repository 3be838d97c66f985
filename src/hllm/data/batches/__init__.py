"""What training and ranking read: windows, token-budget batches, queries."""
