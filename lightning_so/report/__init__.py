"""One page of a run, made of its recordings: what went well, what did not and why, and the pictures of it."""
