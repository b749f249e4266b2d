"""Metrics and judges: they read transcripts and never run a model."""
