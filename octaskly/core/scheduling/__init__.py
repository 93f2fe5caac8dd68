"""The task queue, array members, retry policy and the matching of tasks to workers."""
