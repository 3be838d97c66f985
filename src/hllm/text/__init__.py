"""Item text: templates, cleaning, fusion, and what is kept of long fields."""
