"""The HTML report of a run: one page, self-contained, that opens offline."""
