"""Runs attempts on this machine: launchers, process trees, inputs and outputs.

Nothing is imported here: launchers load modules of this package by file and must
start in milliseconds.
"""
