"""What `--mode=sample` can do with a trained run."""
