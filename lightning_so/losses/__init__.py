"""What the graph of a loss tells: how it joins its samples, and its curvature in the model's predictions."""
