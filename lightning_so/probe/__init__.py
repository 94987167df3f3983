"""The loss of a training step and its gradient again, at whatever the weights are."""
