"""The part of the `fsseg` command that makes tables of what ran; `fsseg.cli.app` adds it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer) -> None:
    app.command()(aggregate)


def aggregate(
    folders: Annotated[list[str], typer.Argument(help="Output folders, e.g. outputs/runs, or addresses: s3://...")],
    out: Annotated[Path | None, typer.Option(help="Where the tables go; the first folder if not given")] = None,
) -> None:
    """Collect results into tables: folds as columns, the mean, and the paper's figure beside ours."""
    import tempfile

    from fsseg.process.remote import is_url
    from fsseg.report.aggregate import aggregate as collect_tables
    from fsseg.sweep.sync import mirror

    with tempfile.TemporaryDirectory(prefix="fsseg-aggregate-") as temporary:
        places = [mirror(f, Path(temporary, str(i))) if is_url(f) else Path(f) for i, f in enumerate(folders)]
        if out is None and is_url(folders[0]):
            out = Path(folders[0].rstrip("/").rpartition("/")[2] + "-summary")
        print(collect_tables(places, out))
