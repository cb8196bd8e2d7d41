"""The exceptions that newsrec raises for mistakes that the user can fix.

The message of each names the value, the place and the next step. ``python -m newsrec`` prints it
without a traceback and exits with code 2.
"""


class UserError(ValueError):
    """A mistake that the user can fix, and the base of the classes below."""


class DataError(UserError):
    """A data folder, or a file in it, cannot be used."""


class MissingDataError(DataError, FileNotFoundError):
    """A data folder, a split or a file of a split is not there."""


class ModelError(UserError):
    """A checkpoint, an exported folder or a pretrained model cannot be used."""


class MissingModelError(ModelError, FileNotFoundError):
    """A checkpoint, an exported folder or a pretrained model is not there."""


class StoreError(UserError, OSError):
    """A store of a live recommender cannot be opened, read or written."""


class HubError(UserError, ConnectionError):
    """The Hugging Face hub cannot be reached, lacks the repository, or refuses a request."""


class MissingPackageError(UserError, ImportError):
    """A package is not installed; the message has the command that installs the package."""

    @classmethod
    def of(cls, what: str, package: str, extra: str) -> "MissingPackageError":
        """Return the error for an optional package.

        Args:
            what: The command or option that needs the package.
            package: Name of the package.
            extra: The extra of ``newsrec`` that has the package.
        """
        return cls(
            f'{what} needs the package {package}: run `pip install "newsrec[{extra}]"`, in a clone '
            f'`pip install -c constraints.txt -e ".[{extra}]"`.'
        )
