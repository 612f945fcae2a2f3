"""Floor 1: how we are seen: metrics and logs."""
