"""Run configurations: `default.py` has every key; the others are differences from it."""
