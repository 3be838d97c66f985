"""Baselines in the interface of a trained model, by name in baselines.fit."""
