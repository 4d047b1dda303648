"""What `fsseg aggregate` does: read runs, tabulate them, write the summary files.

`build` makes the tables and `render` their text; here they are put together and written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fsseg.errors import UserError
from fsseg.process.files import write_atomic, write_json
from fsseg.report import formats as render
from fsseg.report.collect import collect
from fsseg.report.experiments import experiment_report
from fsseg.report.paper import FOLDS
from fsseg.report.replication import REPLICATION_FILE, is_ours, replication_json
from fsseg.report.tables import MEAN, Report, Row, Table, build


def replication(report: Report) -> tuple[dict[str, Any], list[str]]:
    """The content of replication_results.json, and what had no place in it, in words.

    The file has one place for a data set, backbone and shot, and means ABCB by it: only whole results of ABCB at its
    defaults enter. Of several such rows the one under the protocol `standard` does, then the one with most folds, then
    the one with most episodes.
    """
    rivals: dict[tuple[str, str, int], list[tuple[tuple[bool, int, int], Table, Row]]] = defaultdict(list)
    left_out: list[str] = []
    for table in report.tables:
        protocol = table.protocol or {}
        for row in table.rows:
            for shot in table.shots:
                entries = [row.entries[shot, fold] for fold in FOLDS if (shot, fold) in row.entries]
                if not entries or row.method != "abcb" or row.variant != "default":
                    continue
                if any(e.partial for e in entries):
                    left_out.append(f"{table.dataset} {row.label} {shot}-shot (partial)")
                    continue
                episodes = protocol.get("num_episodes")
                rank = (protocol.get("name") == "standard", len(entries), episodes if isinstance(episodes, int) else 0)
                rivals[table.dataset, row.backbone, shot].append((rank, table, row))
    figures = {}
    for (dataset, backbone, shot), candidates in sorted(rivals.items()):
        (_, home, row), *others = sorted(candidates, key=lambda c: c[0], reverse=True)
        folds = {fold: row.entries[shot, fold].miou for fold in FOLDS if (shot, fold) in row.entries}
        mean = row.entries.get((shot, MEAN))
        figures[dataset, backbone, shot] = (folds, mean.miou if mean else None)
        for _, table, other in others:
            left_out.append(f"{other.label} {shot}-shot of {table.title}; in its place: {row.label} of {home.title}")
    return replication_json(figures), left_out


def aggregate(paths: Iterable[str | Path], out_dir: str | Path | None = None) -> str:
    """Everything `fsseg aggregate` does: read, tabulate, write the files, and return the text to print.

    Writes summary.csv, .md, .json and .tex and replication_results.json into `out_dir`, by default the first path (or
    its folder, if it is a file), and the tables and plots of the paper's experiments for the runs that ask for one.
    A replication_results.json that the older workflow wrote is never replaced.

    Raises:
        UserError: a path does not exist, nothing was found, or the folder cannot be written.
    """
    paths = list(paths)
    report = build(collect(paths))
    first = Path(paths[0])
    folder = Path(out_dir) if out_dir is not None else (first if first.is_dir() else first.parent)
    old, left_out = replication(report)
    target = folder / REPLICATION_FILE
    if target.exists() and not is_ours(target):
        target = folder / "replication_results_fsseg.json"
    files = [folder / f"summary.{kind}" for kind in ("csv", "md", "json", "tex")] + [target]
    try:
        write_atomic(files[0], render.to_csv(report))
        write_atomic(files[1], render.to_markdown(report))
        write_json(files[2], render.to_json(report))
        write_atomic(files[3], render.to_latex(report))
        write_json(target, old)
        experiments = experiment_report(report.cells, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the summary into {folder} ({error.strerror})", "give another folder for it: --out FOLDER"
        ) from error
    text = render.to_text(report)
    if experiments is not None:
        text += "\n" + experiments.text
        files += experiments.files
    if left_out:
        text += "\nNot in " + target.name + ":\n" + "".join(f"  {line}\n" for line in left_out)
    return text + f"\nWritten to {folder}: {', '.join(f.name for f in files)}"
