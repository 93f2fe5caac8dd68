"""Files of tasks, as a member of a mesh keeps, finds and measures them."""
