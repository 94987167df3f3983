"""Steps, bytes and memory of 1 to 1,024 ranks, from the planner's own code; and how near that is to real ranks."""
