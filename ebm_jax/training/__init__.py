"""Learning: the loop, the guard, the optimiser, the state of a run and the one pure step that advances it."""
