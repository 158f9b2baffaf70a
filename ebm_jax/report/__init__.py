"""What a person sees of a run: lines, metrics, events, pictures and figures."""
