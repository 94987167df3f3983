"""From a due unit to a basis that is swapped in."""
