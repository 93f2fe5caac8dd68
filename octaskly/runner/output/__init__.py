"""Output of attempts in files of bounded size."""
