"""`fsseg verify`: whether a data set is the standard benchmark, what is missing, and every fault, in one pass.

Lists are compared with the published ones (`Source.compare`), every image is decoded, every mask's size is compared
with its image's, and a sheet of masks over their images is drawn; on request all content is compared with that of an
earlier day. Called by the `fsseg` command and by `prepare`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from fsseg.data.faults import Comparison, Fault
from fsseg.data.setup.digests import compare_content
from fsseg.data.source import SPLITS, ClassIndex, Source, Split, unreadable
from fsseg.data.workers import map_files
from fsseg.draw.sheets import Tile, sample_sheet
from fsseg.errors import UserError, visible
from fsseg.process.words import count

log = logging.getLogger(__name__)


@dataclass
class VerifyReport:
    """What was found.

    Attributes:
        dataset, root: what was looked at.
        masks: how its masks are made, in words.
        lists: per split, where its list comes from and how many images it has.
        comparison: with the published lists.
        faults: everything wrong with lists, annotations, masks and the images that are there.
        missing_images: per split, paths of the images that are not there.
        decoded: images that were read to their end.
        content: what the digests of all files say, as text; empty if they were not asked for.
        sheet: the picture of sample masks, if one was drawn.
    """

    dataset: str
    root: Path
    masks: str = ""
    lists: dict[str, tuple[str, int]] = field(default_factory=dict)
    comparison: Comparison = field(default_factory=Comparison)
    faults: list[Fault] = field(default_factory=list)
    missing_images: dict[str, list[str]] = field(default_factory=dict)
    decoded: int = 0
    content: list[str] = field(default_factory=list)
    sheet: Path | None = None

    @property
    def standard(self) -> bool:
        """Whether the lists are those of the standard benchmark and nothing is faulty (images may be missing)."""
        return self.comparison.standard and not self.faults

    @property
    def ready(self) -> bool:
        """Whether a run can start: nothing faulty, nothing missing."""
        return not self.faults and not any(self.missing_images.values())

    def text(self, limit: int | None = 20) -> str:
        """The report as text; at most `limit` files per kind, None for all."""
        lines = [f"{self.dataset} in {self.root.absolute()}"]
        lines += [
            f"  {split}: {count(number, 'image')}, from {origin}" for split, (origin, number) in self.lists.items()
        ]
        lines += [f"  masks: {self.masks}"] if self.masks else []
        lines += _comparison_lines(self.comparison, bool(self.faults), limit)
        for split, paths in self.missing_images.items():
            total = self.lists[split][1] if split in self.lists else len(paths)
            if paths:
                lines.append(f"missing: {len(paths)} of {count(total, f'{split} image')}:")
                lines += _some([f"  {path}" for path in paths], limit)
        kinds: dict[str, list[Fault]] = {}
        for fault in self.faults:
            kinds.setdefault(fault.kind, []).append(fault)
        for kind, faults in kinds.items():
            lines.append(f"fault: {kind} ({len(faults)}):")
            lines += _some([f"  {fault}" for fault in faults], limit)
            lines.append(f"  -> {faults[0].fix}")
        lines += self.content
        lines.append(f"{count(self.decoded, 'image')} decoded, {count(len(self.faults), 'fault')}")
        if self.sheet is not None:
            lines.append(f"masks over their images to look at: {self.sheet}")
        return "\n".join(map(visible, lines))


def _comparison_lines(comparison: Comparison, faulty: bool, limit: int | None) -> list[str]:
    lines = [f"note: {note}" for note in comparison.notes]
    if not comparison.checked:
        return lines + [f"not the standard benchmark: {cause}" for cause in comparison.causes]
    if comparison.standard:
        verdict = "standard benchmark" if not faulty else "the lists are the standard ones, but see the faults below"
        agree = f"all {comparison.checked} numbers agree with the published ones ({comparison.published})"
        lines.append(f"{verdict}: {agree}")
        return lines
    lines.append(
        f"not the standard benchmark: {len(comparison.differences)} of {comparison.checked} numbers differ "
        f"from the published ones ({comparison.published})"
    )
    lines += [f"  likely cause: {cause}" for cause in comparison.causes]
    return lines + _some([f"  {difference}" for difference in comparison.differences], limit)


def _some(lines: list[str], limit: int | None) -> list[str]:
    if limit is None or len(lines) <= limit:
        return lines
    return [*lines[:limit], f"  ... and {len(lines) - limit} more"]


def verify(
    source: Source,
    sheet: Path | None = None,
    decode: bool = True,
    num_samples: int = 20,
    deep: bool = False,
    digests: Path | None = None,
) -> VerifyReport:
    """Check a data set and report every finding; no finding is raised as an error.

    Args:
        source: the data set.
        sheet: PNG to draw `num_samples` masks over their images into; None draws none.
        decode: decode every image to its end; False only checks that the files exist.
        deep: compare the SHA-256 of every image and mask with a list, or write that list.
        digests: the list; see `digests.compare_content`.
    """
    report = VerifyReport(dataset=source.name, root=source.root, masks=source.mask_rule)
    indexes: dict[Split, ClassIndex] = {}
    for split in SPLITS:
        try:
            index, faults = source.scan(split)
            report.faults += faults
            if index is None:
                continue
            indexes[split] = index
            report.lists[split] = (source.list_origin(split), len(index.image_ids))
            missing = source.missing_images(split)
        except UserError as error:
            report.faults.append(
                Fault("lists or annotations that cannot be used", str(source.root), error.what, error.fix)
            )
            continue
        report.missing_images[split] = [str(source.image_path(split, image_id)) for image_id in missing]
        if decode:
            report.faults += _image_faults(source, split, index, set(missing), report)
            named = {fault.path for fault in report.faults}
            report.faults += [fault for fault in source.changed_files(split) if fault.path not in named]
    report.faults += [
        Fault("settings that do not fit the data", str(source.root), error.what, error.fix)
        for error in source.setting_faults(["val"])  # what is scored only needs no class to train on
    ]
    report.faults += source.shared_images(source.listed("train"), source.listed("val"))
    report.faults = list(dict.fromkeys(report.faults))  # splits of one file share its faults
    report.comparison = source.compare(indexes)
    if deep:
        report.content, faults = compare_content(source, indexes, digests)
        report.faults += faults
    if sheet is not None and indexes:
        rng, each = np.random.default_rng(0), num_samples // len(indexes)  # the same samples every time
        samples = [s for split, index in indexes.items() for s in islice(_samples(source, split, index, rng), each)]
        if samples:
            try:
                sample_sheet(sheet, samples)
            except OSError as error:
                what = f"{sheet}: cannot be written ({error.strerror})"
                raise UserError(what, "give another file: --sheet FILE") from None
            report.sheet = sheet
    return report


def _image_faults(
    source: Source, split: Split, index: ClassIndex, missing: set[str], report: VerifyReport
) -> list[Fault]:
    """Decode the images of a split that are there; their sizes must be those of their masks."""
    ids = {str(source.image_path(split, i)): i for i in index.image_ids if i not in missing}
    faults, sizes = [], {}
    for path, result in map_files("upright image" if source.upright else "image", list(ids), f"{split} images"):
        report.decoded += 1
        if isinstance(result, str):
            faults.append(unreadable(path, result))
        else:
            sizes[ids[path]] = (result[0], result[1])
    return sorted(faults + source.size_faults(split, sizes), key=lambda fault: fault.path)


def _samples(source: Source, split: Split, index: ClassIndex, rng: np.random.Generator) -> Iterator[Tile]:
    """One mask over its image of each class, then a second of each, ...; missing and faulty images are skipped."""
    by_class: dict[int, list[int]] = {}
    for pair in rng.permutation(np.flatnonzero(index.pair_pixels)).tolist():
        by_class.setdefault(int(index.pair_class[pair]), []).append(pair)
    while by_class:
        for class_id in list(by_class):
            sample = None
            while sample is None and by_class[class_id]:
                image_id = index.image_ids[index.pair_image[by_class[class_id].pop()]]
                sample = _tile(source, split, image_id, class_id)
            if sample is None:
                del by_class[class_id]
            else:
                yield sample


def _tile(source: Source, split: Split, image_id: str, class_id: int) -> Tile | None:
    try:
        image, mask = source.image(split, image_id), source.mask(split, image_id, class_id)
    except UserError:
        return None
    if image.shape[:2] != mask.shape:
        return None
    return Tile(image, mask, f"{source.classes[class_id]}, {split}\n{image_id}")
