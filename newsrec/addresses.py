"""Keys in addresses such as ``s3://KEY:SECRET@bucket/folder``, which no message shows."""

import re

OPTIONS_WITH_KEYS = re.compile(r"&(sig|[^&=]*(secret|password|token|key))=", re.IGNORECASE)
"""An option of an address that is a key, such as the ``sig`` of Azure; ``&`` stands before it."""


def _keys(any_character: str) -> re.Pattern[str]:
    """Return a pattern for what stands before the ``@`` of an address.

    It ends at the last ``@``, since a secret may have ``/``, ``?`` and ``@`` in it. The ``@`` of a
    path alone, after host:port, [IPv6] or a bucket, is not taken for that. The name before the
    ``@`` of abfs and gs has no colon and stays. One of the two slashes may be missing, since
    ``pathlib`` removes it.
    """
    part, last = r"[^\s/?]" if any_character == r"\S" else "[^/?]", rf"{any_character}*@"
    first, name = part.replace("^", "^:"), part.replace("^", "^:@")
    return re.compile(
        rf"(?:(?<=\w:/)|(?<=\w://))(?:{first}*:{part}*@(?:{last})?"
        rf"|(?!\[){name}*:(?!\d*(?:[/?\s]|$)){last})"
        rf"|(?:(?<=s3:/)|(?<=s3://)){name}*:{last}"  # a bucket has no port
        rf"|(?:(?<=https:/)|(?<=https://)|(?<=http:/)|(?<=http://)){name}*@"  # a token
    )


_IN_TEXT, _IN_ADDRESS = _keys(r"\S"), _keys(r"[\s\S]")


def without_keys(text: str) -> str:
    """Remove ``KEY:SECRET@`` from the addresses in a text, which may come from anywhere."""
    return _IN_TEXT.sub("", text) if "@" in text else text


def without_secrets(address: str) -> str:
    """Return an address without the keys and options that it may have; a path as it is."""
    if "://" not in address:
        return address
    return _IN_ADDRESS.sub("", address).partition("?")[0].rstrip("/")
