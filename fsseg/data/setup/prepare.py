"""`fsseg prepare`: what a data set needs, what is there, and on request the rest of it, from the official places.

Called by the `fsseg` command. Every step can be interrupted and repeated, and of several hosts that start at once over
one shared folder one works while the others wait.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsseg.cell.claim import held
from fsseg.data.setup.download import Archive, download
from fsseg.data.setup.unpack import unpack
from fsseg.data.sources.voc_lists import find_sbd
from fsseg.errors import UserError

if TYPE_CHECKING:
    from fsseg.config.schema import DatasetConfig
    from fsseg.data.setup.verify import VerifyReport

log = logging.getLogger(__name__)

_LEASE_SECONDS = 120.0  # of the folder, while a process that fetches gives no sign of life


@dataclass(frozen=True)
class Need:
    """Files that must be there: at least `count` names in `folder` (below the root) that end in `suffix`."""

    folder: str
    suffix: str
    count: int

    def found(self, root: Path) -> int:
        """How many there are."""
        folder = root / self.folder
        if not folder.is_dir():
            return 0
        return sum(p.name.endswith(self.suffix) and not p.name.startswith(".") for p in folder.iterdir())


@dataclass(frozen=True)
class Part:
    """A piece of a data set that comes in one archive.

    Attributes:
        needs: files that show it is complete.
        instead: files that make it unnecessary if they are all there.
    """

    archive: Archive
    needs: tuple[Need, ...]
    instead: tuple[Need, ...] = ()

    def lacking(self, root: Path, sbd: Path | None = None) -> list[tuple[Need, int]]:
        """Needs that are not met, with the number of files found; empty if the part is complete or unnecessary.

        Args:
            sbd: where SBD lies if not in `root/SBD`.
        """
        if self.instead and all(need.found(root) >= need.count for need in self.instead):
            return []
        needs = self.needs
        if sbd is not None:
            needs = tuple(
                replace(n, folder=str(sbd / n.folder[4:])) if n.folder.startswith("SBD") else n for n in needs
            )
        counted = [(need, need.found(root)) for need in needs]
        return [(need, found) for need, found in counted if found < need.count]


_VOC = Archive(
    name="VOCtrainval_11-May-2012.tar",
    urls=(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    ),
    size=1_999_639_040,
    md5="6cd6e144f989b92b3379bac3b3de84fd",
    strip="VOCdevkit/VOC2012",
    unpacked=2_000_000_000,
)
_SBD = Archive(
    name="benchmark.tgz",
    urls=(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    size=1_419_539_633,
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    strip="benchmark_RELEASE/dataset",
    into="SBD",
    unpacked=300_000_000,
    only=("cls/", "train.txt", "val.txt"),  # its images are VOC2012's
)


def _coco(name: str, size: int, md5: str, unpacked: int, **more: Any) -> Archive:
    folder = "annotations" if name.startswith("annotations") else "zips"
    url = f"http://images.cocodataset.org/{folder}/{name}"
    return Archive(name=name, urls=(url,), size=size, md5=md5, unpacked=unpacked, **more)


# Sizes and digests as the publishers' servers and torchvision state them. COCO's digests are those that several
# projects publish; the servers give none.
PARTS: dict[str, tuple[Part, ...]] = {
    "pascal5i": (
        Part(
            _VOC,
            # 12031 of VOC2012's 17125 images have a mask in VOC or SBD.
            needs=(
                Need("JPEGImages", ".jpg", 12031),
                Need("SegmentationClass", ".png", 2913),
                Need("ImageSets/Segmentation", "train.txt", 1),
                Need("ImageSets/Segmentation", "val.txt", 1),
            ),
            instead=(Need("JPEGImages", ".jpg", 12031), Need("SegmentationClassAug", ".png", 12031)),
        ),
        Part(
            _SBD,
            needs=(Need("SBD/cls", ".mat", 11355), Need("SBD", "train.txt", 1), Need("SBD", "val.txt", 1)),
            instead=(Need("SegmentationClassAug", ".png", 12031),),
        ),
    ),
    "coco20i": (
        Part(
            _coco(
                "annotations_trainval2014.zip",
                252_872_794,
                "0a379cfc70b0e71301e0f377548639bd",
                700_000_000,
                only=("annotations/instances_",),
            ),
            needs=(
                Need("annotations", "instances_train2014.json", 1),
                Need("annotations", "instances_val2014.json", 1),
            ),
        ),
        Part(
            _coco("train2014.zip", 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88", 13_600_000_000),
            needs=(Need("train2014", ".jpg", 82783),),
            instead=(Need("images/train2014", ".jpg", 82783),),
        ),
        Part(
            _coco("val2014.zip", 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3", 6_700_000_000),
            needs=(Need("val2014", ".jpg", 40504),),
            instead=(Need("images/val2014", ".jpg", 40504),),
        ),
    ),
}


@dataclass
class PrepareReport:
    """What `prepare` found and did.

    Attributes:
        complete: every part is there (images of lists of the user's own may still be missing: see `verified`).
        lines: what is there and what is missing, to read.
        fetched: archives fetched and unpacked.
        verified: the outcome of `verify`; None if there was nothing to index yet.
    """

    complete: bool
    lines: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    verified: VerifyReport | None = None

    def text(self, limit: int | None = 20) -> str:
        """The report to read."""
        return "\n".join([*self.lines, *([self.verified.text(limit)] if self.verified else [])])


def inspect(root: Path, parts: Sequence[Part], sbd_root: Path | None = None) -> tuple[list[Part], list[str]]:
    """Parts that are not complete, and the state of all of them in lines to read. Looks at file names only.

    Raises:
        UserError: `sbd_root` is given but holds no SBD.
    """
    sbd = find_sbd(root, sbd_root)
    missing, lines = [], []
    for part in parts:
        lacking = part.lacking(root, sbd)
        archive = part.archive
        if not lacking:
            lines.append(f"there: all that {archive.name} brings")
            continue
        missing.append(part)
        lines.append(f"missing: {archive.name} ({archive.size / 1e6:.0f} MB, {archive.urls[0]})")
        for need, found in lacking:
            what = f"{need.count} files *{need.suffix}" if need.count > 1 else need.suffix
            lines.append(f"  {(root / need.folder).absolute()}: {what} expected, {found} found")
    return missing, lines


def prepare(
    cfg: DatasetConfig,
    fetch: bool = False,
    keep_archives: bool = False,
    sheet: Path | None = None,
    parts: Sequence[Part] | None = None,
    pause: float = 1.0,
) -> PrepareReport:
    """Say what a data set lacks, fetch it on request, build the index and verify.

    Args:
        fetch: fetch and unpack what is missing.
        keep_archives: leave the archives in `<root>/.fsseg/archives` instead of removing them once unpacked.
        sheet: PNG for sample masks, see `verify`.
        parts: what the data set is made of; None takes the official archives.
        pause: see `download.download`.

    Raises:
        UserError: a download failed, the disk is full, an archive is not the official one.
    """
    root = Path(cfg.root).expanduser()
    given = getattr(cfg, "sbd_root", None)
    sbd_root = Path(given).expanduser() if given is not None else None
    if parts is None:
        parts = PARTS.get(cfg.name, ())
        if cfg.name == "coco20i" and getattr(cfg, "year", 2014) != 2014:
            parts = ()
            if fetch:
                raise UserError(
                    f"dataset.year={getattr(cfg, 'year', None)}: only COCO 2014, the year of all results, is fetched",
                    "set dataset.year=2014, or fetch the other year from cocodataset.org",
                )
    missing, lines = inspect(root, parts, sbd_root)
    fetched = []
    if missing and fetch:
        with held(root / ".fsseg" / "prepare.lock", _LEASE_SECONDS):
            for part in inspect(root, parts, sbd_root)[0]:  # another host may have done it while this one waited
                fetch_part(part, root, keep_archives, pause)
                fetched.append(part.archive.name)
        missing, lines = inspect(root, parts, sbd_root)
        if missing:
            raise UserError(
                f"{root.absolute()} is still incomplete after unpacking:\n" + "\n".join(lines),
                "remove the folder named above and start again",
            )
    report = PrepareReport(complete=not missing, lines=lines, fetched=fetched)
    if missing:
        total = sum(part.archive.size for part in missing) / 1e9
        command = f"fsseg prepare dataset={cfg.name} dataset.root={cfg.root} --download"
        report.lines.append(f"`{command}` fetches what is missing: {total:.1f} GB")
    if _indexable(cfg):
        report.verified = _verify(cfg, sheet)
    return report


def fetch_part(part: Part, root: Path, keep_archive: bool = False, pause: float = 1.0) -> None:
    """Download and unpack one part; the archive is removed once its files are in place.

    Raises:
        UserError: as `download` and `unpack`.
    """
    path = download(part.archive, root / ".fsseg" / "archives", pause)
    number = unpack(part.archive, path, root)
    log.info("%s: %d files unpacked into %s", part.archive.name, number, root / part.archive.into)
    if not keep_archive:
        path.unlink(missing_ok=True)


def _indexable(cfg: DatasetConfig) -> bool:
    from fsseg.data.registry import source_class

    return not source_class(cfg.name).check_folder(cfg)


def _verify(cfg: DatasetConfig, sheet: Path | None) -> VerifyReport:
    from fsseg.data.registry import source_class
    from fsseg.data.setup.verify import verify

    return verify(source_class(cfg.name)(cfg), sheet)
