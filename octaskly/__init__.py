"""Octaskly turns the machines of a LAN into one computer for shell commands."""

__version__ = "0.1.0"
