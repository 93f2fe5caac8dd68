"""The composition root: wires the parts of a node together and runs its loop.

`main` orders start and stop, `loop` feeds events to the core and performs its effects,
`gateway` answers the API, `notify` talks to systemd, `clock` is the one clock and dice.
"""
