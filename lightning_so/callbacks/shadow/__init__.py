"""Shadow mode: a method is tried on a copy of a training, beside it."""
