"""Learning: the losses, the optimiser, the state of a run and the one pure step that advances it."""
