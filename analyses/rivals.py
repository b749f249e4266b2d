"""Gone: the leaderboard compares the same methods."""

import sys

print("gone: use python analyses/leaderboard.py", file=sys.stderr)
sys.exit(2)
