"""Output of tasks: logs, downloads, and followers across attempts and nodes."""
