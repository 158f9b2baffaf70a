"""Devices and processes: one mesh, and how the hosts of a run agree."""
