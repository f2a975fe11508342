"""URLs of places: they are kept in rows and printed, so none may have a secret in it."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit


def without_secrets(url: str) -> str:
    """The URL without a user's name, password, query and fragment: fit to be printed. A path stays as it is."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{url.partition('://')[0]}://..."
    if not parts.scheme or "://" not in url:
        return url
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def may_have_secrets(url: str) -> bool:
    """Whether it has anything that `without_secrets` leaves out."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    return "://" in url and bool("@" in parts.netloc or parts.query or parts.fragment)
