"""What `fsseg aggregate` does: read runs, tabulate them, write the summary files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fsseg.errors import UserError, visible
from fsseg.process.files import write_atomic, write_json
from fsseg.report import summary
from fsseg.report.bibliography import to_bib
from fsseg.report.collect import collect
from fsseg.report.experiments import experiment_report
from fsseg.report.replication import REPLICATION_FILE, is_ours
from fsseg.report.tables import build, with_intervals

_SHOWN = 20  # rows that have no place in the older workflow's file


def aggregate(paths: Iterable[str | Path], out_dir: str | Path | None = None) -> str:
    """Read runs, tabulate them, write the files, and return the text to print.

    Writes summary.csv, .md, .json, .tex and .bib and replication_results.json into `out_dir`, by default the first path
    (or its folder, if it is a file), and the tables and plots of the paper's experiments for the runs that ask for one.
    A replication_results.json that the older workflow wrote is never replaced.

    Raises:
        UserError: a path does not exist, nothing was found, or the folder cannot be written.
    """
    paths = list(paths)
    report = build(collect(paths))
    with_intervals(report)
    first = Path(paths[0])
    folder = Path(out_dir) if out_dir is not None else (first if first.is_dir() else first.parent)
    old = summary.to_replication(report)
    target = folder / REPLICATION_FILE
    if target.exists() and not is_ours(target):
        target = folder / "replication_results_fsseg.json"
    files = [folder / f"summary.{kind}" for kind in ("csv", "md", "json", "tex", "bib")] + [target]
    try:
        write_atomic(files[0], summary.to_csv(report))
        write_atomic(files[1], summary.to_markdown(report))
        write_json(files[2], summary.to_json(report))
        write_atomic(files[3], summary.to_latex(report))
        write_atomic(files[4], to_bib(cell.key for cell in [*report.cells, *report.base_learners]))
        write_json(target, old)
        experiments = experiment_report(report.cells, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the summary into {folder} ({error.strerror})", "give another folder for it: --out FOLDER"
        ) from error
    text = summary.to_text(report)
    if experiments is not None:
        text += "\n" + experiments.text
        files += experiments.files
    if left_out := old["left_out"]:
        shown = left_out[:_SHOWN] + [f"... and {len(left_out) - _SHOWN} more, listed in it"] * (len(left_out) > _SHOWN)
        text += "\nNot in " + target.name + ":\n" + "".join(f"  {visible(line)}\n" for line in shown)
    text += "".join(f"\n{target.name}: {visible(note)}\n" for note in old["notes"])
    return text + f"\nWritten to {visible(folder)}: {', '.join(visible(f.name) for f in files)}"
