"""What a compiled training step computes, moves and holds, for chips that are not there."""
