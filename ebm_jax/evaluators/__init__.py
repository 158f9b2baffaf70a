"""What `--mode=evaluate` can measure of a trained run, one function a metric."""
