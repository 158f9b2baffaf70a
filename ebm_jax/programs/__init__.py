"""Compiled programs: what their optimised HLO says that they do, and the chips that they are for."""
