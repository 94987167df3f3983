"""What a run's recordings say: pure functions from a run to findings. Thresholds stand beside their reasons."""
