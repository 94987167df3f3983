"""What a run leaves behind of itself: one file a rank, written and read without torch, and without running code."""
