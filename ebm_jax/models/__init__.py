"""Energies: the algebra that binds them, the networks that produce them, and the layers these are made of."""
