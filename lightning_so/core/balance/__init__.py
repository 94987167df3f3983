"""How fast each rank solves, and which units it therefore has."""
