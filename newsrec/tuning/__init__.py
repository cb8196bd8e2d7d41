"""Searches for the options with which a model learns best, by Optuna."""
