"""Composition: the step function, timers, message handlers and role changes."""
