"""The model organism: a small LLaVA trained from scratch on a procedural world of people, shipped with the package."""
