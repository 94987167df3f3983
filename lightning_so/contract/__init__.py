"""What a method is given, and what it is asked for."""
