"""The dispatcher: admission, dispatch, outcomes, cancellation and compaction."""
