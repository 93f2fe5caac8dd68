"""Output of attempts as bounded files."""
