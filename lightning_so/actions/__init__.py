"""How curvature meets the base optimizer."""
