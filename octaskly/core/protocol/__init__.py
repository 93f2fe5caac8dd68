"""Messages between peers, their bounds and their encoding."""
