"""Item text: templates, and later the fusion and shortening of long fields."""
