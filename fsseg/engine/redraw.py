"""`fsseg sheets`: the best, median and worst episodes of finished runs, drawn from their records and checkpoints.

The record says which episodes these are; only they are evaluated again, and their counts must be the recorded ones:
then the masks that are drawn are those that were scored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fsseg.cell.episodes import OWN
from fsseg.cell.extremes import Ranked, extremes, extremes_of_classes, ranked
from fsseg.cell.finished import Finished
from fsseg.config.base_training import starts_from_a_base_learner
from fsseg.config.entry import resolved
from fsseg.data.loader import EvaluationPlan, evaluation_plan
from fsseg.data.registry import build_source, source_class
from fsseg.data.source import Source
from fsseg.draw.sheets import SheetRow, episode_sheet
from fsseg.engine import checkpoint, precision
from fsseg.engine.base_classes import base_cell, take_over
from fsseg.engine.context import Run
from fsseg.engine.devices import choose_device
from fsseg.engine.pictures import sheet_row, title_of
from fsseg.engine.restore import check_weights
from fsseg.engine.scoring import Picture, Scoring
from fsseg.errors import UserError, visible
from fsseg.model import FewShotModel, build_model
from fsseg.process.words import count as counted

_MOST_ROWS = 60
_LETTERS = "ABCDEFGH"

_NO_SCORING = {
    "name", "unlike", "episodes_file", "image_size", "train_pool", "novel_in_training", "train_query", "ignore_in_loss",
}  # fmt: skip
"""What of a protocol does not say how episodes are drawn and scored: words, places, and rules of the training."""

Key = tuple[int, int]
"""Evaluation seed and number of an episode."""


@dataclass(frozen=True)
class SheetChoice:
    """Which episodes are drawn.

    Attributes:
        count: of each of best, median and worst.
        per_class: so many of each class.
    """

    count: int = 3
    per_class: bool = False

    def of(self, found: Finished, values: NDArray[np.float64]) -> dict[str, list[Ranked]]:
        """The episodes of a run by rank.

        Args:
            values: (E,) of its recorded episodes.

        Raises:
            UserError: they are too many for a sheet, or none has a value.
        """
        episodes = ranked(found.counts, values)
        picked = (extremes_of_classes if self.per_class else extremes)(episodes, self.count)
        if (rows := max(map(len, picked.values()))) > _MOST_ROWS:
            what = f"--count {self.count} --per-class: {rows} episodes are too many for one sheet"
            raise UserError(what, f"lower --count, so that there are {_MOST_ROWS} at most")
        if not rows:
            raise UserError(f"{found.cell.directory}: no episode has an IoU", "name a run that was evaluated")
        return picked

    def file(self, rank: str, before: str = "") -> str:
        """The name of a sheet."""
        return f"{before}{rank}{'_per_class' * self.per_class}.png"


@dataclass(frozen=True)
class Answers:
    """Some episodes of a run, evaluated again.

    Attributes:
        pictures: by evaluation seed and number.
        unlike: those whose counts are not the recorded ones.
    """

    source: Source
    pictures: Mapping[Key, Picture]
    unlike: Collection[Key]

    def told(self) -> str:
        """Whether the masks are those that were scored, in one line."""
        if not self.unlike:
            return f"counts of all {counted(len(self.pictures), 'drawn episode')} as recorded"
        number = f"{len(self.unlike)} of {counted(len(self.pictures), 'drawn episode')}"
        return f"{number} differ in pixels from the record (another machine, device or rounding); marked on the sheets"


def places(runs: Sequence[Finished], out: Path | None = None) -> list[Path]:
    """The folder for the sheets of each run: its own figures; or `out`, and for several runs their cells below it.

    Raises:
        UserError: two of the runs are of one cell, so that their sheets would have one name.
    """
    if out is None or len(runs) == 1:
        return [out or found.cell.figures for found in runs]
    found = [out / run.cell.key.path for run in runs]
    if twice := [run.cell for run, folder in zip(runs, found) if found.count(folder) > 1]:
        what = f"{twice[0].directory} and {twice[1].directory} are of one cell: below {out} they would have one name"
        raise UserError(what, "leave --out out, or draw them one after the other")
    return found


def draw_run(found: Finished, choice: SheetChoice, folder: Path) -> str:
    """Draw `best.png`, `median.png` and `worst.png` of a run into a folder; returns what was drawn, as text.

    Raises:
        UserError: the data, the weights or the record do not belong together, or are not here.
    """
    recorded = dict(zip(_keys(found), found.counts.iou().tolist()))
    picked = choice.of(found, found.counts.iou())
    answers = answer(found, {e.key for episodes in picked.values() for e in episodes})
    lines = [f"{found.cell.directory}: {found.result.score_line()}, {counted(len(recorded), 'episode')}"]
    for rank, episodes in picked.items():
        rows = [_row(answers, e, recorded[e.key], _several_seeds(found)) for e in episodes]
        path = folder / choice.file(rank)
        episode_sheet(path, rows, _title(found, rank, choice, len(recorded)))
        lines.append(f"  {rank:<7} IoU {_shown(episodes)}  {path}")
    return "\n".join(map(visible, [*lines, f"  {answers.told()}"]))


def draw_comparison(runs: Sequence[Finished], choice: SheetChoice, folder: Path) -> str:
    """Draw the episodes at which the first of several runs gains most on the second, and least, and those between.

    Args:
        runs: of the same episodes. The answer of each has a column.

    Raises:
        UserError: they are of other episodes, or as of `draw_run`.
    """
    check_alike(runs)
    names = _LETTERS[: len(runs)]
    ious = [dict(zip(_keys(found), found.counts.iou().tolist())) for found in runs]
    difference = np.array([ious[0][key] - ious[1][key] for key in _keys(runs[0])])
    picked = choice.of(runs[0], difference)
    wanted = {e.key for episodes in picked.values() for e in episodes}
    answers = [answer(found, wanted) for found in runs]
    about = [f"{name}: {found.cell.key}, {found.result.score_line()}" for name, found in zip(names, runs)]
    lines = list(about)
    for rank, episodes in picked.items():
        rows = [
            _compared([(name, a, own[e.key]) for name, a, own in zip(names, answers, ious)], e, runs) for e in episodes
        ]
        path = folder / choice.file(rank, "compared_")
        key = runs[0].cell.key
        place = f"{key.dataset} fold {key.fold}, {key.shot}-shot"
        head = f"difference of IoU, A - B, {place}: {_which(rank, choice, len(difference))}"
        episode_sheet(path, rows, "\n".join([head, *about]))
        lines.append(f"  {rank:<7} A - B {_shown(episodes, _signed)}  {path}")
    lines += [f"  {name}: {a.told()}" for name, a in zip(names, answers)]
    return "\n".join(map(visible, lines))


def check_alike(runs: Sequence[Finished]) -> None:
    """
    Raises:
        UserError: there are fewer than two runs or too many for a page, or they were not scored on the same episodes.
    """
    if not 2 <= len(runs) <= len(_LETTERS):
        what = f"--compare sets 2 to {len(_LETTERS)} runs beside each other, and these are {len(runs)}"
        raise UserError(what, "name the run directories of one fold: fsseg sheets A B --compare")
    first = runs[0]
    for other in runs[1:]:
        here, there = _scored_on(first), _scored_on(other)
        if differ := [f"{name} {here[name]} and {there[name]}" for name in here if here[name] != there[name]]:
            raise UserError(
                f"{first.cell.directory} and {other.cell.directory} were not scored on the same episodes by the same "
                f"rules: {', '.join(differ)}",
                "compare runs of one data set, fold, number of shots, list of episodes and protocol",
            )


def _scored_on(found: Finished) -> dict[str, object]:
    """What must be equal in runs whose IoUs are subtracted, by name."""
    key, data, protocol = found.cell.key, found.result.dataset, resolved(found.cfg.protocol)
    rules = {f"protocol.{rule}": value for rule, value in protocol.items() if rule not in _NO_SCORING}
    network = found.cfg.dataset.image_size if protocol["scoring_size"] == "network" else None
    return {
        "data set": key.dataset, "fold": key.fold, "shots": key.shot, "episodes": data.episodes_fingerprint,
        "index": data.fingerprint_val, "images": data.images_val, "number": len(found.counts),
        "size of the truth": network, **rules,
    }  # fmt: skip


def answer(found: Finished, wanted: Collection[Key]) -> Answers:
    """Evaluate some of the recorded episodes of a run again.

    Raises:
        UserError: the data or the weights are not here, or are not those of the run.
    """
    cfg = found.cfg
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    device = choose_device(cfg.device)
    source, plan = _data(found)
    model = _model(found, source).to(device).eval()
    episodes = {seed: [s for s in specs if (seed, s.number) in wanted] for seed, specs in plan.episodes.items()}
    part = replace(plan, episodes={seed: specs for seed, specs in episodes.items() if specs})
    scoring = Scoring(Run(cfg, found.cell, device), model, source)
    precision.prepare(model, device, scoring.amp)
    with torch.inference_mode():
        counts = scoring.counts({OWN: part}, wanted)
    pictures = {(p.seed, p.spec.number): p for p in scoring.pictures}
    return Answers(source, pictures, {(seed, number) for _, seed, number in found.counts.unlike(counts)})


def _data(found: Finished) -> tuple[Source, EvaluationPlan]:
    """The data set and the episodes of the run.

    Raises:
        UserError: they are not here, or others are.
    """
    cfg, recorded = found.cfg, found.result.dataset
    root = cfg.dataset.root
    if lacking := source_class(cfg.dataset.name).check_folder(cfg.dataset, ["val"]):
        name = cfg.dataset.name
        fix = f"name its folder: --also dataset.root=FOLDER, or for all commands FSSEG_DATA or data.roots.{name}="
        raise UserError(lacking[0].what, f"{fix} (see `fsseg where dataset={name}`)")
    source = build_source(cfg)
    source.check(["val"])
    plan = evaluation_plan(source, cfg)
    then = (recorded.fingerprint_val, recorded.images_val, recorded.episodes_fingerprint)
    now = (plan.index_fingerprint, source.images_fingerprint("val"), plan.fingerprint)
    for what, before, here in zip(("index", "sizes of the images", "episodes"), then, now):
        if before is not None and before != here:
            raise UserError(
                f"{found.cell.directory} was evaluated on other data than dataset.root={root} holds: {what} {before} "
                f"then, {here} now",
                "name the folder with the data of the run: --also dataset.root=FOLDER",
            )
    return source, plan


def _model(found: Finished, source: Source) -> FewShotModel:
    """The model with the weights that were scored.

    Raises:
        UserError: they are not here, or are others.
    """
    cfg, result = found.cfg, found.result
    checkpoint.seed_everything(cfg.seed)
    model = build_model(cfg)
    if cfg.checkpoint is not None:
        origin = checkpoint.start_from(model, cfg, source)
        fingerprint, step = result.fingerprint, result.training.steps if result.training else None
        if result.training is None and result.checkpoint is not None:
            fingerprint, step = result.checkpoint.fingerprint or "", result.checkpoint.step
        if (origin.fingerprint, origin.step) != (fingerprint, step):
            raise UserError(
                f"{cfg.checkpoint} is of cell {origin.fingerprint}, step {origin.step}, and the weights of "
                f"{found.cell.directory} are of cell {fingerprint}, step {step}",
                "bring back the checkpoint that the run wrote, or train the cell anew with redo=true",
            )
    elif starts_from_a_base_learner(cfg):
        _start_from_base(found, model)
    else:
        check_weights(result, model, found.cell.directory, "--also ")
    return model


def _start_from_base(found: Finished, model: FewShotModel) -> None:
    """
    Raises:
        UserError: the base learner of the run is not here, or is another one.
    """
    cell, then = base_cell(found.cfg), found.result.base_learner
    fix = f"bring back the base learner that {found.cell.directory} was scored with, or score it anew with redo=true"
    try:
        origin = take_over(model, cell)
    except UserError as error:
        raise UserError(error.what, fix) from None
    if then is not None and then.digest is not None and then.digest != origin.digest:
        what = f"{origin.path} is not the base learner that {found.cell.directory} was scored with"
        raise UserError(f"{what} (SHA-256 {origin.digest}, then {then.digest})", fix)


def _row(answers: Answers, episode: Ranked, iou: float, several_seeds: bool) -> SheetRow:
    """An episode with its IoU as recorded; and as drawn, if that is another."""
    picture = answers.pictures[episode.key]
    row = replace(sheet_row(answers.source, picture), iou=iou, answers=[])
    row.note = "\n".join([*_about(episode, several_seeds), row.note])
    if episode.key in answers.unlike:
        row.note = f"(drawn: {picture.iou:.2f})\n{row.note}"
    return row


def _compared(columns: Sequence[tuple[str, Answers, float]], episode: Ranked, runs: Sequence[Finished]) -> SheetRow:
    """An episode with the answers of several runs.

    Args:
        columns: letter, answers and recorded IoU of each run.
    """
    rows = [sheet_row(a.source, a.pictures[episode.key]) for _, a, _ in columns]
    shown = [(f"{name}: {found.cell.key.method}", row.prediction)
             for (name, *_), found, row in zip(columns, runs, rows)]  # fmt: skip
    ious = [f"{name} {iou:.1f}{'*' * (episode.key in a.unlike)}" for name, a, iou in columns]
    lines = ["  ".join(ious[start : start + 2]) for start in range(0, len(ious), 2)]
    lines += [f"A - B {_signed(episode.value)}", *_about(episode, _several_seeds(runs[0])), rows[0].note]
    if any(episode.key in a.unlike for _, a, _ in columns):
        lines.append("* drawn otherwise")
    return replace(rows[0], iou=None, answers=shown, note="\n".join(lines))


def _about(episode: Ranked, several_seeds: bool) -> list[str]:
    return [f"episode {episode.number}", *([f"seed {episode.seed}"] if several_seeds else [])]


def _keys(found: Finished) -> list[Key]:
    return list(zip(found.counts["seed"].tolist(), found.counts["number"].tolist()))


def _several_seeds(found: Finished) -> bool:
    return len(found.counts.scope.seeds) > 1


def _shown(episodes: Sequence[Ranked], form: Callable[[float], str] = "{:.1f}".format) -> str:
    """The lowest and the highest value of a sheet."""
    values = [e.value for e in episodes]
    return " to ".join(dict.fromkeys(map(form, (min(values), max(values)))))


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # no -0.0


def _which(rank: str, choice: SheetChoice, total: int) -> str:
    return f"{rank} of each class" if choice.per_class else f"{rank} {choice.count} of {counted(total, 'episode')}"


def _title(found: Finished, rank: str, choice: SheetChoice, total: int) -> str:
    """Cell, rank and score; the cell's whole name in a line of its own."""
    key = found.cell.key
    head = f"{title_of(key)}: {_which(rank, choice, total)}, mIoU {found.result.miou:.1f}"
    return f"{head}\n{key}"
