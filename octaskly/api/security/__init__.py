"""Rate limits, sessions, and checks of Host and Origin, without I/O."""
