"""How each layer type turns its inputs and output gradients into rows: one registered description a type."""
