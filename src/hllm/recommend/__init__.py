"""From scores to recommendations: candidate rules and exact top-k."""
