"""The commands about data sets and models: where, prepare, verify, episodes, cost. `app` adds them.

All of them take overrides as `python train.py` does (`dataset=pascal5i dataset.root=...`), for one configuration.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsseg.cli.line import config_dir, takes_line
from fsseg.errors import UserError, visible

if TYPE_CHECKING:
    from fsseg.config.schema import Config

Line = Annotated[list[str] | None, typer.Argument(help="Overrides as after `python train.py`: dataset=pascal5i fold=2")]
Sheet = Annotated[Path | None, typer.Option(help="PNG to draw sample masks over their images into")]


def add_to(app: typer.Typer) -> None:
    for function in (where, prepare, verify, episodes, cost):
        app.command()(takes_line(function))


def loaded(line: list[str] | None, of_a_run: bool = False) -> Config:
    """The one configuration of a line, checked."""
    from fsseg.config.checks import validate
    from fsseg.config.compose import compose
    from fsseg.process.logs import configure_logging

    cfg = compose(line or [], config_dir()).cfg
    validate(cfg, of_a_run)
    configure_logging(cfg.log_level)
    return cfg


def where(line: Line = None) -> None:
    """Where this machine has data, outputs and weights, what says so, and what is missing; launcher defaults."""
    from fsseg.sweep import where as places

    print(places.text(places.places(line or [], config_dir())))


def prepare(
    line: Line = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch what is missing from its official place")] = False,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="Keep the archives after unpacking")] = False,
    sheet: Sheet = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Fetch the backbone's pretrained weights, no data")
    ] = False,
) -> None:
    """Say what of a data set is there, with --download fetch the rest, build the index, verify."""
    if weights:
        return _prepare_weights(line)
    from fsseg.data.setup.prepare import prepare as prepare_data

    report = prepare_data(loaded(line).dataset, download, keep_archives, sheet)
    print(report.text())
    if not report.complete or (report.verified is not None and report.verified.faults):
        sys.exit(1)


def _prepare_weights(line: list[str] | None) -> None:
    """Fetch what the cells of a line will read from the caches of torch and timm; the line may be that of a sweep."""
    from fsseg.config.compose import composer
    from fsseg.model.backbones import published_weights

    with composer(config_dir()) as c:
        made = [composed for _, composed in c.grid(line or [])]
    for fault in (composed for composed in made if isinstance(composed, UserError)):
        raise fault
    backbones = [c.cfg.backbone for c in made if not isinstance(c, UserError)]
    for backbone in {str(backbone): backbone for backbone in backbones}.values():
        name = visible(getattr(backbone, "model", backbone.name))
        if (weights := published_weights(backbone)) is not None:
            print(f"{name}: {visible(weights.fetch())}")
        elif backbone.pretrained and backbone.weights is not None:
            print(f"{name}: takes {visible(backbone.weights)}")
        else:
            print(f"{name}: starts from no published weights")


def verify(
    line: Line = None,
    sheet: Sheet = None,
    quick: Annotated[bool, typer.Option("--quick", help="Do not decode the images that are there")] = False,
    every: Annotated[bool, typer.Option("--all", help="Name every file, not the first 20 of a kind")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Compare the SHA-256 of every image and mask, too")] = False,
    digests: Annotated[Path | None, typer.Option(help="The list to compare with, or to write, for --deep")] = None,
) -> None:
    """Compare a data set with the standard benchmark and name every fault."""
    from fsseg.data.registry import build_source
    from fsseg.data.setup.verify import verify as verify_data

    if digests is not None and not deep:
        raise UserError(f"--digests {digests} is a list for --deep", "add --deep, or leave it out")
    report = verify_data(build_source(loaded(line)), sheet, decode=not quick, deep=deep, digests=digests)
    print(report.text(None if every else 20))
    if not report.ready:
        sys.exit(1)


def episodes(
    line: Line = None,
    out: Annotated[Path | None, typer.Option(help="The file; <dataset>_fold<f>_<k>shot.tsv if not given")] = None,
) -> None:
    """Write the evaluation episodes of a cell to a file for `protocol.episodes_file=`."""
    from fsseg.data.episode_file import ListHead, write_episodes
    from fsseg.data.loader import evaluation_plan
    from fsseg.data.registry import build_source

    cfg = loaded(line, of_a_run=True)
    source = build_source(cfg)
    plan = evaluation_plan(source, cfg)
    out = out or Path(f"{source.name}_fold{cfg.fold}_{cfg.shot}shot.tsv")
    try:
        head = ListHead(source.name, cfg.fold, cfg.shot, source.classes, cfg.protocol.name)
        mark = write_episodes(out, plan.episodes, head)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})", "give another file: --out FILE") from None
    number = sum(len(specs) for specs in plan.episodes.values())
    print(f"{number} episodes of {len(plan.episodes)} seeds in {visible(out)}, fingerprint {mark}")
    for class_id in plan.missing_classes:
        print(f"no episode of {visible(source.classes[class_id])}: too few images")
    for class_id in sorted(set(plan.classes) - {s.class_id for specs in plan.episodes.values() for s in specs}):
        print(f"no episode of {visible(source.classes[class_id])}: too few episodes (protocol.num_episodes)")


def cost(line: Line = None) -> None:
    """Parameters and MACs of each part of a method, beside the paper's; at 473 px unless `dataset=` is given."""
    from fsseg.model import cost as costs

    print(costs.format_cost(costs.cost(loaded(paper_size(line)))))


def paper_size(line: Line) -> list[str]:
    """The setting of the paper's Table 5, pascal5i, where the line names no data set."""
    line = list(line or [])
    return line if any(o.startswith("dataset=") for o in line) else ["dataset=pascal5i", *line]
