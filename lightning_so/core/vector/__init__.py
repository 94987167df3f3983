"""Methods on the whole parameter vector."""
