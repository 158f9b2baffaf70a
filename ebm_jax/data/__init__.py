"""Sources of images of every kind, and batches that are a pure function of the step."""
