"""What a training will hold, send and take, before it runs."""
