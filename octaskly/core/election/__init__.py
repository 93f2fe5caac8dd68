"""Leader election without votes or a quorum.

A node follows a claim if its epoch is not below the highest epoch that the node has
seen, unless the claimant cannot read the log (`claims`). Two dispatchers that meet
compare their HELLOs with `claims.wins_over`. Durability does not depend on a majority
either: see `core.replication.pending_acks`.
"""
