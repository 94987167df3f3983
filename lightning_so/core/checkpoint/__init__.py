"""What a checkpoint carries."""
