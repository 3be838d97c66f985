"""What the scripts beside this folder do: torch-rechub's commands on hllm."""
