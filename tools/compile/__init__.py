"""Counts of what a compiled training step computes, moves and holds, for chips that this machine lacks."""
