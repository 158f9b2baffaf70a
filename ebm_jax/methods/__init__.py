"""Ways to learn an energy."""
