"""A visitor: an agent that runs tasks for a mesh, and has no other right in it."""
