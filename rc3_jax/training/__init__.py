"""State, optimizer, the jitted step, the loop around it."""
