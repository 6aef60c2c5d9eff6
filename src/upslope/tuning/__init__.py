"""Tuning: the settings of a recipe with the highest held-out metric, found by trials, with an honest estimate of it."""
