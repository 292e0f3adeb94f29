"""The error that a user can cause and mend."""


class UserError(ValueError):
    """Something the user can mend.

    The message says what was expected, what came, and what to do. The command line prints it
    without a traceback and exits 1.
    """
