"""The composition root: builds the components of a node and runs its loop.

`lifecycle` starts and stops a node, and `components` builds it. `core_loop` feeds
events to the core and performs its effects. `gateway` answers API requests.
"""
