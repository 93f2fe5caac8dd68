"""Facts of the replicated log, and the join that folds them into records."""
