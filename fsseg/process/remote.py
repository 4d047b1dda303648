"""Addresses of remote stores, and whether fsspec can use them: checked before anything is sent."""

from __future__ import annotations

import re
from urllib.parse import unquote

from fsseg.errors import UserError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "sftp": "sftp", "ssh": "sftp"}
"""Protocol -> the extra of this package that installs what fsspec needs for it."""


def is_url(text: str) -> bool:
    """Whether a text is an address, not a path."""
    return "://" in text


def path_of(url: str) -> list[str]:
    """The folders that an address names below its host, without those that lead elsewhere."""
    return [part for part in url.partition("://")[2].split("/") if part not in ("", ".", "..")]


def url_faults(url: str) -> list[UserError]:
    """Faults of `sync.url` that show before anything is sent: credentials, an unknown protocol, a missing package.

    No message repeats an address that may hold credentials.
    """
    import fsspec

    if holds_credentials(url):
        what = "sync.url: the address holds a password or a key, and addresses are recorded in every run directory"
        fix = "take it out: credentials come from the environment (AWS_PROFILE, ...), ~/.aws or ssh keys; then renew it"
        return [UserError(what, fix)]
    if not url.isprintable():
        return [UserError(f"sync.url={url!r} holds characters that cannot be printed", "write it anew")]
    if "::" in url:
        return [UserError(f"sync.url={url} joins several addresses", "write e.g. s3://bucket/folder")]
    protocol = url.partition("://")[0]
    if not is_url(url) or not protocol or not url.partition("://")[2].strip("/"):
        fix = "write e.g. s3://bucket/folder, sftp://host/folder or file:///folder"
        return [UserError(f"sync.url={url} is no address", fix)]
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        what = f"sync.url={url}: fsspec knows no protocol {protocol}"
        return [UserError(what, "use s3, gs, sftp, file or another that it knows")]
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        fix = f"pip install 'fsseg[{extra}]'" if extra else str(error).splitlines()[0]
        return [UserError(f"sync.url={url}: the package for {protocol} is not installed", fix)]
    return []


_SECRET = re.compile(r"key|secret|token|pass|pwd|sig|cred|auth|sas", re.IGNORECASE)
"""In the name of a query parameter: the parameter holds a secret."""


def holds_credentials(url: str) -> bool:
    """Whether an address holds a password (`user:password@host`) or a secret parameter (`?key=`, `?token=`, ...).

    A user's name alone is none. A password may hold `/` and `#`, so what follows a colon must be a port.
    """
    host = re.sub(r"\[[^\]]*\]", "", url.rpartition("://")[2])  # without an IPv6 address
    if re.match(r"[^/?#@]*:(?!\d*(?:[/?#]|$))", host) or re.match(r"[^/?#]*:[^/?#]*@", host):
        return True
    return any(_SECRET.search(unquote(name)) for name in re.findall(r"[?&;#]([^=&;?#]*)=", unquote(url)))
