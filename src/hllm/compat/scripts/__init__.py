"""What the scripts in `examples/generative/` do: torch-rechub's commands on this library."""
