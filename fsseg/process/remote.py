"""Addresses of remote stores, and whether fsspec can use them: checked before anything is sent."""

from __future__ import annotations

from fsseg.errors import UserError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "sftp": "sftp", "ssh": "sftp"}
"""Protocol -> the extra of this package that installs what fsspec needs for it."""


def is_url(text: str) -> bool:
    """Whether a text is an address, not a path."""
    return "://" in text


def url_faults(url: str) -> list[UserError]:
    """Faults of `sync.url` that show before anything is sent: an unknown protocol, or its package is missing."""
    import fsspec

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
