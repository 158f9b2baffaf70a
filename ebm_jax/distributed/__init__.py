"""Devices and processes of a run: one mesh, and agreement between its hosts."""
