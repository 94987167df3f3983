"""Small real problems of many kinds, on which the methods' defaults are tried as they are: nothing is set."""
