"""Rotation of the mesh secret across all nodes."""
