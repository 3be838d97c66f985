"""Training objectives, computed in chunks: no (tokens x items) tensor is held."""
