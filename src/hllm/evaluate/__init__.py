"""Exact full ranking, metrics, slices and significance."""
