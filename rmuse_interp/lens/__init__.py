"""The user's interface: a loaded model that answers questions, exposes its states and runs plans."""
