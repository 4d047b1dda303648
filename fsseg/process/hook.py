"""A command of the user's that is run when something ended (`notify.on_end`), by a cell or by a sweep.

It is one line for the shell, as the user wrote it. What fsseg knows comes in environment variables alone: a reason or
a name that somebody else chose is never part of a command.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress

from fsseg.errors import visible

log = logging.getLogger("fsseg")

FACTS = ("EVENT", "DIR", "CELL", "CELLS", "DONE", "FAILED", "STOPPED", "MIOU", "REASON", "SECONDS")
"""Names of the facts; in the environment `FSSEG_` stands before them. Those that do not apply are empty."""
_LONGEST = 2000  # characters of one


def call(command: str | None, seconds: float, facts: Mapping[str, object]) -> None:
    """Run the command, if there is one, and wait for its end; whatever it does, only a warning comes of it.

    Args:
        command: for `sh -c`.
        seconds: after which it is ended, with all that it started.
        facts: by name (`FACTS`); each becomes one line of text.
    """
    if command is None:
        return
    told = {f"FSSEG_{name}": visible(facts.get(name, ""))[:_LONGEST] for name in FACTS}
    try:
        with tempfile.TemporaryFile() as errors:  # no pipe: what it leaves running in the background may stay
            process = subprocess.Popen(
                command, shell=True, env=os.environ | told, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=errors, start_new_session=True,
            )  # fmt: skip
            try:
                status = process.wait(seconds)
            except subprocess.TimeoutExpired:
                log.warning("notify.on_end: not done after %g s; it was ended", seconds)
                return
            finally:
                if process.poll() is None:
                    with suppress(OSError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if status != 0:
                errors.seek(max(0, errors.seek(0, os.SEEK_END) - 500))
                words = errors.read().decode("utf-8", "replace").strip()
                log.warning("notify.on_end: status %d: %s", status, words.splitlines()[-1] if words else "no words")
    except (OSError, ValueError) as error:
        log.warning("notify.on_end: %s", error)
