"""The command `rmuse`. Commands load what they need when they run, so that `rmuse --help` is there at once."""

from rmuse_interp.cli.app import app, main

__all__ = ["app", "main"]
