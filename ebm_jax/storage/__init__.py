"""What outlives the process: a run's folder, its checkpoints, exports, weights and saved statistics."""
