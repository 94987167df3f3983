"""What a Trainer takes."""
