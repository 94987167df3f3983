"""The weights that the forward pass reads, by who keeps them."""
