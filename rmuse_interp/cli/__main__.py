"""`python -m rmuse_interp.cli`: the command `rmuse` if its script is not on the path."""

from rmuse_interp.cli import main

main()
