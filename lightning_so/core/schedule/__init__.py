"""Which unit is solved when, by whom, within which budget."""
