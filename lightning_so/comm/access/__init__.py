"""Where the numbers of parameters are, by who shards them."""
