"""Metrics and judges, which read transcripts and never run a model."""
