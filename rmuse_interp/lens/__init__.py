"""Where a person works: a loaded model that answers, shows its states and runs plans."""
