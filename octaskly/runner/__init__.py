"""Running attempts on this machine: launchers, process trees, inputs and outputs.

This module imports nothing, because launchers import from this package and must start
within milliseconds.
"""
