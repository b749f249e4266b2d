"""The one exception a caller has to know."""


class RMuseError(ValueError):
    """A request that cannot be met: one line saying what was required, what arrived, which call mends it.

    The command line prints the line and exits with code 2; inside Python it is an ordinary `ValueError`.
    """
