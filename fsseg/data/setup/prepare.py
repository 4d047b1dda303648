"""`fsseg prepare`: shows what a data set lacks, and on request fetches it from the official places.

Called by the `fsseg` command. Every step can be interrupted and repeated. If several hosts start at once on a shared
folder, one works and the others wait.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsseg.cell.claim import held
from fsseg.config.schema import DatasetConfig
from fsseg.data.registry import source_class
from fsseg.data.setup.download import Part, download
from fsseg.data.setup.unpack import is_unpacked, stopped_at, unpack
from fsseg.data.setup.verify import VerifyReport, verify
from fsseg.errors import Lines, UserError, merge_errors, visible
from fsseg.process.files import ClaimLost

log = logging.getLogger(__name__)

_LEASE_SECONDS = 120.0  # of the folder: after so long without renewal another process may fetch


@dataclass
class PrepareReport:
    """What `prepare` found and did.

    Attributes:
        complete: every part is there but for those that only other settings need (images of lists of the user's own
            may still be missing: see `verified`).
        lines: what is there and what is missing, as text.
        fetched: archives fetched and unpacked.
        verified: the outcome of `verify`; None if there was nothing to index yet.
    """

    complete: bool
    lines: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    verified: VerifyReport | None = None

    def text(self, limit: int | None = 20) -> str:
        """The report as text."""
        return "\n".join([*self.lines, *([self.verified.text(limit)] if self.verified else [])])


def state_of(root: Path, parts: Sequence[Part]) -> tuple[list[Part], list[str]]:
    """Parts that are not complete, and the state of all parts as lines of text. Looks at file names only."""
    missing, lines = [], []
    for part in parts:
        lacking = part.lacking(root)
        archive = part.archive
        left = stopped_at(archive, root)
        if not lacking and left is None:
            lines.append(f"there: all that {archive.name} brings")
            continue
        missing.append(part)
        size = "" if archive.size is None else f"{archive.size / 1e6:.0f} MB, "
        only = f", which only {part.only_for} needs" if part.only_for else ""
        lines.append(f"missing: {archive.name} ({size}{archive.urls[0]}){only}")
        for need, found in lacking:
            what = f"{need.count} files *{need.suffix}" if need.count > 1 else need.suffix
            lines.append(f"  {visible((root / need.folder).absolute())}: {what} expected, {found} found")
        if left is not None:  # what is there may be enough to be counted as all, and is not
            lines.append(
                f"  {visible(left.absolute())}: left by a call that was stopped before all files were in place"
            )
    return missing, lines


def prepare(
    cfg: DatasetConfig,
    fetch: bool = False,
    keep_archives: bool = False,
    sheet: Path | None = None,
    pause: float = 1.0,
) -> PrepareReport:
    """Say what a data set lacks, fetch it on request, build the index and verify.

    Args:
        fetch: fetch and unpack what is missing of `Source.parts`.
        keep_archives: leave the archives in `<root>/.fsseg/archives` instead of removing them once unpacked.
        sheet: PNG for sample masks, see `verify`.
        pause: see `download.download`.

    Raises:
        UserError: a download failed, the disk is full, an archive is not the official one.
    """
    root, source = Path(cfg.root).expanduser(), source_class(cfg.name)
    missing, lines = state_of(root, source.parts(cfg, fetch))
    fetched, failed = [], []
    if missing and fetch:
        try:
            with held(root / ".fsseg" / "prepare.lock", _LEASE_SECONDS) as claim:
                for part in state_of(root, source.parts(cfg))[0]:  # another host may have done it while this one waited
                    try:
                        fetch_part(part, root, keep_archives, pause, claim.check)
                    except UserError as error:
                        if not part.only_for:
                            raise
                        failed += [f"  {error.what}", f"  -> {error.fix}"]
                    else:
                        fetched.append(part.archive.name)
        except ClaimLost as lost:
            raise UserError(f"{root.absolute()}: {lost}", "wait until it is done, then start again") from None
        except OSError as error:
            fix = "set dataset.root to a folder that you can write to"
            raise UserError(f"{root.absolute()}: cannot be written ({error.strerror})", fix) from None
        missing, lines = state_of(root, source.parts(cfg))
        lines += failed
        if any(not part.only_for for part in missing):
            raise UserError(
                Lines(f"{visible(root.absolute())} is still incomplete after unpacking:\n" + "\n".join(lines)),
                "remove the folder named above and start again",
            )
    report = PrepareReport(all(part.only_for for part in missing), lines, fetched)
    if missing and not failed:
        total = sum(part.archive.size or 0 for part in missing) / 1e9
        size = f": {total:.1f} GB" if total else ""
        report.lines.append(f"`{source.fetching(cfg)}` fetches what is missing{size}")
    lacking = source.check_folder(cfg)
    if lacking and report.complete:  # nothing that can be fetched: the folder itself is wrong
        raise merge_errors(lacking)
    if not lacking:
        report.verified = verify(source(cfg), sheet)  # type: ignore[call-arg]  # as in `build_source`
    return report


def fetch_part(
    part: Part,
    root: Path,
    keep_archive: bool = False,
    pause: float = 1.0,
    still_ours: Callable[[], None] = lambda: None,
) -> None:
    """Download and unpack one part; the archive is removed once its files are in place.

    Args:
        still_ours: as for `unpack`.

    Raises:
        UserError: as `download` and `unpack`.
    """
    path = root / ".fsseg" / "archives" / part.archive.name
    if not is_unpacked(part.archive, root):
        path = download(part.archive, path.parent, pause)
    number = unpack(part.archive, path, root, still_ours)
    log.info("%s: %d files unpacked into %s", part.archive.name, number, root / part.archive.into)
    if not keep_archive:
        path.unlink(missing_ok=True)
