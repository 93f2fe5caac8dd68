"""This machine: clock, log, load and listeners."""
