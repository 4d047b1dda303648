"""Open files of a process: that its standard streams are there, and that it may open enough of others.

`train.py` and `fsseg` call this before anything else.
"""

from __future__ import annotations

import os
import sys

from fsseg.errors import UserError

_FEWEST, _USUAL = 256, 4096  # a worker that loads data takes about 30, with what it has under way


def allow_open_files() -> None:
    """Raise this process's limit of open files to a usual one, as far as the system lets it.

    Raises:
        UserError: too few for a run. Without this, workers that load data would wait for ever for what cannot be sent.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _USUAL:
        return
    wanted = _USUAL if hard == resource.RLIM_INFINITY else min(hard, _USUAL)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < _FEWEST:
        what = f"this process may have only {wanted} files open at a time, a run needs {_FEWEST}"
        raise UserError(what, f"allow more: ulimit -n {_USUAL}")


def open_standard_streams() -> None:
    """Give a process that was started without one of them (`2>&-`) the null device in its place.

    Otherwise the next file that it opens, a checkpoint say, gets the number 2, and error messages are written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
