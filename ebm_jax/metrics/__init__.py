"""What a model is worth: measures of an energy, or of arrays, that know nothing of training."""
