"""Gone: every finished run says what it took."""

import sys

print(
    "gone: compare the seconds in scores.json of rmuse eval with --record and with --no-record",
    file=sys.stderr,
)
sys.exit(2)
