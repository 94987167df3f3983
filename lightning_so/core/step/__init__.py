"""What happens around the base's step."""
