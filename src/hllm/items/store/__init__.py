"""The embedding store: what is asked for, what is there, and the loop that makes the rest."""
