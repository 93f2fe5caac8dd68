"""What a node reports of itself in numbers, and the form that Prometheus reads."""
