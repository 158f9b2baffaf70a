"""Measurements, each a script. Candidates run side by side, and only ratios count."""
