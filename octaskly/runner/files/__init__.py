"""Files of attempts: blobs, scratch folders and the task user's helper."""
