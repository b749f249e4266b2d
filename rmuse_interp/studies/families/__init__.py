"""A conformance suite for model families: tiny random checkpoints, checks, and the table of what each family can do."""
