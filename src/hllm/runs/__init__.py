"""Run folders: what a run is, how one is made, written and read."""
