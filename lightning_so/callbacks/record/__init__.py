"""The flight recorder: what it looks at in a Trainer, and when."""
