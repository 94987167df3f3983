"""Which method works on which parameter, and who owns what."""
