"""Exceptions for mistakes of the user; the command line turns them into a message."""


class UserError(ValueError):
    """A mistake that the user can fix; the message names the value, the place and the next step.

    ``python -m newsrec`` prints it without a traceback and exits with code 2.
    """


class HubError(UserError, ConnectionError):
    """The Hugging Face hub cannot be reached, or does not have or take what was asked for."""
