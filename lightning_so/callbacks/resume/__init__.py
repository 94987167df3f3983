"""Whether a training that resumes from a checkpoint equals one that did not stop."""
