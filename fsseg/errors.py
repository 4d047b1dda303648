"""The one exception type for mistakes that a user can make; raised everywhere, printed by `train.py` and `fsseg`."""

from __future__ import annotations


class UserError(Exception):
    """A fault the user can correct: one line says what is wrong, one line what to do.

    Both lines name the file, configuration key or command concerned. The entry points print them without a traceback
    and exit with a non-zero status; `HYDRA_FULL_ERROR=1` shows the traceback.

    Args:
        what: what is wrong.
        fix: what to do about it.
    """

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(what, fix)  # both as args, so that the exception survives pickling between processes

    def __str__(self) -> str:
        return f"{self.what}\n  -> {self.fix}" if self.fix else self.what


def merge_errors(errors: list[UserError]) -> UserError:
    """Several faults as one error, each with its own two lines and told once, in the order found."""
    errors = list({str(error): error for error in errors}.values())
    if len(errors) == 1:
        return errors[0]
    return UserError(f"{len(errors)} faults:\n" + "\n".join(f"- {e}" for e in errors))
