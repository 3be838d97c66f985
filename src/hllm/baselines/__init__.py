"""Baselines in the interface of a trained model: popularity, random, first-order Markov."""
