"""What a person sees of a run: lines, metrics, events, pictures, figures, and the page."""
