"""What a step observes, and how it is folded."""
