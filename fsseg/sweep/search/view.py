"""`fsseg search`: what searches have found: best trials, what the scores depend on, pictures, the line of the winner.

The pictures are Optuna's own, drawn with matplotlib.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from fsseg.config.schema import SearchConfig
from fsseg.errors import UserError
from fsseg.process.tables import aligned
from fsseg.sweep.search.space import words
from fsseg.sweep.search.study import FOLDER, JOURNAL, Study, Trial, counted, open_storage

log = logging.getLogger("fsseg.sweep")

_PLOTS = {
    "history": ("plot_optimization_history", "Score of every trial, and the best so far,"),
    "importance": ("plot_param_importances", "Share of each setting in how much scores differ, by fANOVA,"),
    "parallel": ("plot_parallel_coordinate", "Settings and score of every trial as a line across axes,"),
    "slice": ("plot_slice", "Score against each setting"),
}
_ENOUGH = 4  # scored trials, for importances


def studies_of(folders: Iterable[Path], storage: str | None = None) -> list[Study]:
    """The searches of experiments.

    Args:
        folders: `outputs/<name>`, or what is above them.
        storage: that of `search.storage`, if the line had one.

    Raises:
        UserError: there is none.
    """
    given = list(folders)
    found: list[Study] = []
    for folder in given:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder", "name the folder of an experiment: outputs/NAME")
        if storage is not None:
            found += Study.all_in(open_storage(SearchConfig(storage=storage), folder / FOLDER), folder / FOLDER)
            continue
        for journal in journals_of(folder):
            found += Study.all_in(open_storage(SearchConfig(), journal.parent), journal.parent)
    if not found:
        names = " ".join(map(str, given))
        raise UserError(
            f"no search below {names}",
            "name the folder of the experiment: outputs/NAME; with search.storage=, --storage",
        )
    return found


def journals_of(folder: Path) -> list[Path]:
    """The journals of an experiment's folder, or of those in a folder."""
    return sorted({*folder.glob(f"{FOLDER}/{JOURNAL}"), *folder.glob(f"*/{FOLDER}/{JOURNAL}")})


def in_order(trials: Sequence[Trial]) -> list[Trial]:
    """The best first; those without a score last."""
    return sorted(trials, key=lambda t: (t.value is None, -(t.value or 0.0), t.number))


def importances(study: Study) -> dict[str, float]:
    """Share of each key in how much scores differ (fANOVA, Hutter et al. 2014); empty for too few trials."""
    import optuna

    if sum(t.state == "complete" for t in study.trials()) < _ENOUGH:
        return {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study.as_optuna)
    except (ValueError, RuntimeError, ImportError) as error:
        log.info("no importances: %s", error)
        return {}
    return dict(found)


def table(study: Study, most: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the trials, the best first."""
    trials = in_order(study.trials())
    keys = list(dict.fromkeys(key for trial in trials for key in trial.chosen))
    rows = []
    for trial in trials[:most]:
        values = dict(word.split("=", 1) for word in words(trial.chosen))
        score = "" if trial.value is None else f"{trial.value:.2f}"
        rows.append([str(trial.number), score, trial.word, *(values.get(key, "") for key in keys)])
    return ["trial", study.cfg.metric, "state", *keys], rows


def what_counts(study: Study) -> str:
    """What the scores depend on, in words; empty for too few trials."""
    shares = importances(study)
    told = ", ".join(f"{key} {100 * share:.0f} %" for key, share in shares.items())
    return f"what the scores depend on (fANOVA): {told}" if told else ""


def text(study: Study, most: int) -> str:
    """What `fsseg search` prints of one."""
    trials = study.trials()
    header, rows = table(study, most)
    lines = [f"{study.name}: {counted(trials)}", "", aligned([header, *rows], left=(2,))]
    if len(trials) > most:
        lines.append(f"({len(trials) - most} more: --trials)")
    if told := what_counts(study):
        lines += ["", told]
    if (best := study.best) is not None:
        what = "the best settings on all training images, scored on the novel classes of all folds:"
        lines += ["", what, study.winner(best)]
    return "\n".join(lines)


def draw(study: Study, folder: Path | None = None) -> list[tuple[Path, str]]:
    """Draw the pictures of a study as PNG; each with what it shows.

    Args:
        folder: for them; None is that of the journal.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as plots

    made = []
    place = folder or study.folder
    place.mkdir(parents=True, exist_ok=True)
    for name, (function, what) in _PLOTS.items():
        if sum(t.state == "complete" for t in study.trials()) < (_ENOUGH if name == "importance" else 2):
            continue
        file = place / f"{study.name}-{name}.png"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                axes = getattr(plots, function)(study.as_optuna, target_name=study.cfg.metric)
                figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
                figure.set_size_inches(max(figure.get_size_inches()[0], 8), 4.5)
                figure.savefig(file, dpi=120, bbox_inches="tight")
        except (ValueError, RuntimeError, ImportError) as error:
            log.info("no picture of %s: %s", name, error)
            continue
        finally:
            plt.close("all")
        made.append((file, f"{what} of {study.name}"))
    return made
