"""Settings of an agent: definitions, value types, sources and effective values.

`settings` has the table of all settings. Flags, variables, files, `octaskly config` and
the reference page are derived from it. `value_types` has the syntax of values, and
`sources` reads flags, variables and files. `agent` has the effective values, `paths`
the files of an agent, and `task_account` the user of its tasks.

This module imports nothing, because quick commands need only `paths`.
"""
