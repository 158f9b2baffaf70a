"""Markov chains: the one loop, the kernels that run in it, and the replay buffer they restart from."""
