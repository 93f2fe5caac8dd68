"""Access to this machine: clock, log, load and listening sockets."""
