"""In which ways a training's device computes: measured at the start, and agreed on by all ranks."""
