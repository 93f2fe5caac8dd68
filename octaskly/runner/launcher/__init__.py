"""The launcher process: starts attempts and ends their process trees."""
