"""Where the project touches the world: data sets, checkpoints, and what a person watches."""
