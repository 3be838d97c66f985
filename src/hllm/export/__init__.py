"""Runs in formats that other programs read, checked against the run itself."""
