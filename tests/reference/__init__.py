"""Naive references, written straight from the formulas."""
