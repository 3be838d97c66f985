"""Other systems' files, read safely and written so that those systems read them."""
