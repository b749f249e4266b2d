"""The command `rmuse`. Commands import what they need when they run, so that `rmuse --help` appears at once."""

from rmuse_interp.cli.app import app, main

__all__ = ["app", "main"]
