"""Addresses of stores and schedulers: which ones are URLs, and that no credential is in one, or in a message."""

from __future__ import annotations

import os
import re

from expunge.core.errors import ConfigError

#: Names of environment variables whose values never appear in a message.
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|_KEY|KEY_ID|CONNECTION_STRING", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
_QUERY = re.compile(r"(://[^\s?'\"]*)\?[^\s'\"]+")


def get_scheme(address: str) -> str | None:
    """The scheme of a URL in lower case; None for a path.

    Example:
        >>> get_scheme("s3://bucket/store"), get_scheme("runs/store")
        ('s3', None)
    """
    scheme, mark, _ = address.partition("://")
    return scheme.lower() if mark and not set("/\\") & set(scheme) else None


def check_url(url: str, option: str) -> None:
    """Refuse a URL with a user, a password, keys or a fragment, without repeating it.

    Args:
        url: the URL.
        option: the option that it was given for.

    Raises:
        ConfigError: the URL has one of them, or chains two file systems (`::`).

    Example:
        >>> check_url("s3://bucket/store", "store")
        >>> check_url("s3://ID:SECRET@bucket/store", "store")
        Traceback (most recent call last):
            ...
        expunge.core.errors.ConfigError: store: a URL must not have a user or a password (s3://...)
          hint: credentials are read from the environment, as the library of the file system documents
    """
    if "::" in url:
        raise ConfigError("a URL names one file system", where=option, hint="leave out what is before `::`")
    rest = url.partition("://")[2]
    host = rest.partition("/")[0]
    wrong = "a user or a password" if "@" in host else "keys (?...)" if "?" in url else "a fragment (#...)"
    if "@" in host or "?" in url or "#" in url:
        raise ConfigError(
            f"a URL must not have {wrong} ({get_scheme(url)}://...)", where=option,
            hint="credentials are read from the environment, as the library of the file system documents",
        )  # fmt: skip
    if not host and not rest:
        raise ConfigError("the URL names no place", where=f"{option} {url}")


def scrub(text: object) -> str:
    """A message without users, passwords and keys of URLs, and without values of secret environment variables.

    Example:
        >>> scrub("cannot open https://me:secret@host/a?X-Signature=abc")
        'cannot open https://***@host/a?***'
    """
    found = _QUERY.sub(r"\1?***", _USER.sub("***@", str(text)))
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET.search(name) and value in found:
            found = found.replace(value, "***")
    return found
