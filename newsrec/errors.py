"""The one exception that the command line turns into a message."""


class UserError(ValueError):
    """A mistake that the user can fix; the message names the value, the place and the next step.

    ``python -m newsrec`` prints it without a traceback and exits with code 2.
    """
