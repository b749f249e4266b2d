"""Set-up shared by tests and doctests.

beartype is imported before anything can import nnsight: the other order fails with
``unhashable type: 'instancemethod'``.
"""

import beartype  # noqa: F401
