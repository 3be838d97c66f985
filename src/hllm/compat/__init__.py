"""Other systems' modules under their own names, equal to theirs."""
