"""Files of attempts: scratch folders, captured outputs and the task user's helper."""
