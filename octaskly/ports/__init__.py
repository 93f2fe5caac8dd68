"""Interfaces between the agent, its components and the API.

They connect components that cannot import each other. Test fakes pass the same contract
suites as the real components.
"""
