"""Loggers outside the run folder: Weights & Biases and MLflow, imported only if a run uses them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from newsrec.errors import UserError

EXTRAS = {"wandb": "wandb", "mlflow": "mlflow", "sqlalchemy": "mlflow", "alembic": "mlflow"}
"""Extra of newsrec that installs a package; MLflow needs the last two for its database."""


def missing_package(error: BaseException | None) -> str | None:
    """Return the message for a missing package that an error, or its cause, names."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    said = " ".join(str(error).split())
    named = error.name or next((name for name in EXTRAS if f"'{name}" in said), None)
    if named is None:
        return f"a package is missing: {said}. Install it."
    name = named.partition(".")[0]
    source = f'"newsrec[{EXTRAS[name]}]"' if name in EXTRAS else name
    return f"the package {name} is missing: run `pip install {source}`."


def log_options(loggers: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Give the loggers the options of the run; a logger that cannot be used fails here first."""
    for logger in loggers:
        with _logger_mistakes():
            logger.log_hyperparams(options)


@contextmanager
def _logger_mistakes() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # compared by name, so that neither package is imported
        package = type(error).__module__.partition(".")[0]
        if package not in ("wandb", "mlflow"):
            raise
        hint = (
            "Log in, or set WANDB_MODE=offline and upload the run later with `wandb sync`."
            if package == "wandb"
            else "Start the server that MLFLOW_TRACKING_URI names, or name a file such as "
            "sqlite:///mlflow.db."
        )
        said = " ".join(str(error).split()).removesuffix(".")
        raise UserError(f"--trainer.logger: {said}. {hint}") from error
