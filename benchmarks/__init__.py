"""Measurements, each a script: what it compares runs side by side, and ratios are what counts."""
