"""What the service is started with: plain values, which its workers get as they are."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from newsrec.errors import UserError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names that a browser on this machine reaches the service by."""
ORIGIN = re.compile(r"https?://[^/\s?#@]+")


@dataclass(frozen=True)
class Limits:
    """The largest request that is answered."""

    k: int = 100
    """News recommended, found or listed."""
    history: int = 1000
    """News ids of a history, or to exclude."""
    candidates: int = 1000
    """News ids to rank."""
    items: int = 1000
    """News or clicks in one request."""
    body: int = 4 * 2**20
    """Bytes of a request's body."""


@dataclass(frozen=True)
class Settings:
    """What ``serve`` serves, and to whom."""

    export: Path | None
    """None is the export that answers in the store."""
    store: Path | None = None
    """Folder of the store; None is the one beside the export."""
    data_root: str | Path | None = None
    """Data folder whose dev split has the users of ``/examples``."""
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    threads: int | None = None
    index_above: int | None = None
    retention_days: float | None = None
    tokens: tuple[str, ...] = ()
    """A request needs one of these; empty: none."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call the service from a browser."""
    allowed_hosts: tuple[str, ...] = ()
    """Further values of the header Host; see ``hosts``."""
    limits: Limits = field(default_factory=Limits)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the service."""
        return self.host in LOOPBACK or (
            _is_address(self.host) and ipaddress.ip_address(self.host).is_loopback
        )

    @property
    def hosts(self) -> frozenset[str] | None:
        """Values of the header Host that are answered; None: all.

        A page of another site can point its own name at 127.0.0.1 and so read the answers of a
        service without a token. Its requests then name that site as their host.
        """
        if self.allowed_hosts or (self.is_local and not self.tokens):
            return LOOPBACK | {self.host} | {name.lower() for name in self.allowed_hosts}
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def read_tokens(path: str | Path) -> tuple[str, ...]:
    """Return the tokens of a file, one a line.

    Raises:
        UserError: If there is none, or one has a character that a header cannot have.
    """
    try:
        tokens = tuple(Path(path).read_text(encoding="utf-8").split())
    except UnicodeDecodeError as error:
        raise UserError(f"--token_file {path} is not a text file. Write a token in it.") from error
    if not tokens:
        raise UserError(
            f"--token_file {path} is empty. `python -c 'import secrets; "
            f"print(secrets.token_urlsafe())' > {path}` writes a token."
        )
    if not all(token.isascii() and token.isprintable() for token in tokens):
        raise UserError(f"--token_file {path} has a token with characters outside ASCII.")
    return tokens


def check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Return origins as a browser writes them; UserError if one is not an origin."""
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise UserError(f"--cors is {origin!r}. Give an origin, such as https://example.org.")
    return tuple(origin.lower() for origin in origins)
