"""The pretrained weights that torchvision publishes (IMAGENET1K_V1): their files, and where torch keeps them.

Known without torch, for fingerprints and for the checks before a sweep; `fsseg.model.backbones` fetches and reads them.
"""

from __future__ import annotations

import os
from pathlib import Path

from fsseg.errors import UserError

FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
}
"""Backbone -> file; its name ends in the start of its SHA-256."""


def digest(name: str) -> str:
    """The start of the SHA-256 of a backbone's file."""
    return Path(FILES[name]).stem.rpartition("-")[2]


def url(name: str) -> str:
    """Where torchvision offers a backbone's file."""
    return f"https://download.pytorch.org/models/{FILES[name]}"


def cached(name: str) -> Path:
    """Where a backbone's file lies if torch has fetched it: `$TORCH_HOME/hub/checkpoints`, by torch's own rule."""
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.environ.get("TORCH_HOME", os.path.join(caches, "torch"))).expanduser()
    return home / "hub" / "checkpoints" / FILES[name]


def mismatch(name: str, found: str) -> UserError | None:
    """What is wrong with the file in torch's cache if its SHA-256 begins with `found`."""
    if found.startswith(digest(name)):
        return None
    return UserError(
        f"{cached(name)} is not the file that its name says: its SHA-256 begins with {found[:8]}",
        "remove it and it is fetched again, or name other weights by backbone.weights=",
    )
