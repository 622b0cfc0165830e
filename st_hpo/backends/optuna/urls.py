"""What a storage's URL says, and what of it may be shown. Pure Python."""

from __future__ import annotations

import re
import urllib.parse
from typing import Any

# The package of each driver; SQLAlchemy takes the first of a database where the URL names none
_DRIVERS = {
    "redis": {"": "redis"},
    "rediss": {"": "redis"},
    "postgresql": {"": "psycopg2-binary", "psycopg2": "psycopg2-binary", "psycopg": "'psycopg[binary]'"},
    "mysql": {"": "mysqlclient", "mysqldb": "mysqlclient", "pymysql": "pymysql"},
}
_DRIVERS["mariadb"] = _DRIVERS["mysql"]
_IN_MEMORY = re.compile(r"sqlite(\+\w+)?://(/?|/:memory:.*|/file:.*mode=memory.*)$")


def redacted(text: str, url: Any) -> str:
    """Returns a text without the password of a storage's URL.

    Args:
        text: The text.
        url: The URL, or whatever else the storage is.
    """
    if not isinstance(url, str):
        return text
    scheme, separator, rest = url.partition("://")
    if not separator:  # no URL, so there is no telling which part of it is the password
        return text.replace(url, f"{url.partition(':')[0]}:***")
    user_info, at, where = rest.rpartition("@")
    user, _, password = user_info.partition(":")
    options = urllib.parse.parse_qsl(urllib.parse.urlsplit(url).query) if "?" in where else []
    forms = {value for name, value in options if "pass" in name.lower()}
    forms |= {urllib.parse.quote_plus(value) for value in forms}
    if at and password:
        text = text.replace(url, f"{scheme}://{user}:***@{where}")
        forms |= {password, urllib.parse.unquote(password), urllib.parse.unquote_plus(password)}
        # Of a password with an unescaped "@", SQLAlchemy takes the end for the host, the port and the database
        parts = re.split("[@/:?]", password) if "@" in password else []
        forms |= {part for part in (*password.split("@")[1:], *parts[1:]) if part}
    for secret in sorted(forms, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def driver_of(url: str) -> str | None:
    """Returns the package with the driver of a storage's URL, as pip takes it; None if it is not known."""
    database, _, driver = url.partition("://")[0].partition("+")
    drivers = _DRIVERS.get(database, {})
    return drivers.get(driver, driver or None) if drivers else None


def is_in_memory(storage: Any) -> bool:
    """Whether no other process can open a storage."""
    backend = getattr(storage, "_backend", storage)
    url = storage if isinstance(storage, str) else getattr(backend, "url", "")
    in_memory = type(storage).__name__ == "InMemoryStorage"
    return in_memory or bool(isinstance(url, str) and _IN_MEMORY.match(url))
