"""Exceptions for mistakes of the user; the command line turns them into a message."""


class UserError(ValueError):
    """A mistake that the user can fix; the message names the value, the place and the next step.

    ``python -m newsrec`` prints it without a traceback and exits with code 2.
    """


class MissingPackage(UserError):
    """An optional package is not installed; the message has the command that installs it.

    Args:
        what: The command or option that needs the package.
        package: Name of the package.
        extra: The extra of ``newsrec`` that has the package.
    """

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f'{what} needs the package {package}: run `pip install "newsrec[{extra}]"`, in a clone '
            f'`pip install -c constraints.txt -e ".[{extra}]"`.'
        )


class HubError(UserError, ConnectionError):
    """The Hugging Face hub cannot be reached, or does not have or take what was asked for."""
