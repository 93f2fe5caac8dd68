"""The settings of an agent: what may be set, where it is said, and what then holds.

`table` is the one list of settings; flags, variables, files, `octaskly config` and the
reference page are made of it. `kinds` has the ways to write a value, `sources` the
places where one is said, `agent` what an agent gets of all that, `places` where its
files lie, `account` whose rights its tasks get.

Nothing is imported here: a quick command needs a folder, and none of the rest.
"""
