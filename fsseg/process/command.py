"""How a run is started from the current folder: `python train.py` in a checkout, `fsseg train` everywhere else.

Whatever prints a line to run asks here.
"""

from __future__ import annotations

from pathlib import Path


def train_words() -> tuple[str, str]:
    """The first two words of a line that runs cells, as it can be typed in the current folder."""
    try:
        with Path("train.py").open(encoding="utf-8", errors="replace") as file:
            ours = "fsseg" in file.read(10_000)  # another project's train.py is not meant
    except OSError:
        ours = False
    return ("python", "train.py") if ours else ("fsseg", "train")


def train_line(rest: str = "", width: int = 0) -> str:
    """A line that runs cells, as text: `python train.py --help`; in a table with blanks up to a width."""
    return " ".join([*train_words(), rest]).rstrip().ljust(width)
