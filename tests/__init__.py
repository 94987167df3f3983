"""The tests: a folder for each room of the package, and house, together, support, cluster."""
