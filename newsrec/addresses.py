"""Keys in addresses such as ``s3://KEY:SECRET@bucket/folder``, which no message shows."""

import re

_NAMES = "secret|password|token|key|signature"
OPTIONS_WITH_KEYS = re.compile(rf"&(sig|[^&=]*({_NAMES}))=", re.IGNORECASE)
"""An option of an address that is a key, such as the ``sig`` of Azure; ``&`` stands before it."""
_OPTIONS_IN_TEXT = re.compile(
    rf"""(?<=[?&])((?:sig|[^&=?\s]*(?:{_NAMES}))=)[^&\s'"]*""", re.IGNORECASE
)


def _keys(any_character: str) -> re.Pattern[str]:
    """Return a pattern for the keys before the last ``@`` of an address.

    A secret may itself have ``/``, ``?`` and ``@`` in it. If host:port, [IPv6] or a bucket comes
    first, an ``@`` belongs to the path, and the pattern does not match. A name without a colon
    before the ``@``, as in addresses of abfs and gs, is no key and stays. One of the two slashes
    may be missing, since ``pathlib`` removes it. Schemes may be in capital letters.

    Args:
        any_character: Characters that an address can have: without white space in a text.
    """
    part, last = r"[^\s/?]" if any_character == r"\S" else "[^/?]", rf"{any_character}*@"
    first, name = part.replace("^", "^:"), part.replace("^", "^:@")
    return re.compile(
        rf"(?:(?<=\w:/)|(?<=\w://))(?:{first}*:{part}*@(?:{last})?"
        rf"|(?!\[){name}*:(?!\d*(?:[/?\s]|$)){last})"
        rf"|(?:(?<=s3:/)|(?<=s3://)){name}*:{last}"  # a bucket has no port
        rf"|(?:(?<=https:/)|(?<=https://)|(?<=http:/)|(?<=http://)){name}*@",  # a token
        re.IGNORECASE,
    )


_IN_TEXT, _IN_ADDRESS = _keys(r"\S"), _keys(r"[\s\S]")


def without_keys(text: str) -> str:
    """Remove ``KEY:SECRET@`` from the addresses in a text, which may come from anywhere.

    Of an option that is a key, such as ``?sig=SECRET``, only the name stays.
    """
    text = _IN_TEXT.sub("", text) if "@" in text else text
    return _OPTIONS_IN_TEXT.sub(r"\1...", text)


def without_secrets(address: str) -> str:
    """Return an address without the keys and options that it may have; a path as it is."""
    if "://" not in address:
        return address
    return _IN_ADDRESS.sub("", address).partition("?")[0].rstrip("/")
