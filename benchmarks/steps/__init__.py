"""What steps cost: time, jitter, bytes sent, memory."""
