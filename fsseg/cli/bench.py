"""The commands `fsseg bench data|step|evaluate|sweep`: how quick data and models are on this machine. `app` adds them.

Each prints a table with the machine and the commit, and writes the same as JSON with `--json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fsseg.cli.data import Line, loaded, paper_size
from fsseg.cli.line import config_dir, takes_line
from fsseg.errors import UserError

if TYPE_CHECKING:
    from fsseg.bench.common import Findings
    from fsseg.config.compose import Composed

Json = Annotated[Path | None, typer.Option("--json", help="Write the figures here, too")]
Repeats = Annotated[int, typer.Option(min=1, max=100_000, help="Measurements of each side, after one that is not kept")]


def add_to(app: typer.Typer) -> None:
    bench = typer.Typer(no_args_is_help=True, help="Measure how quick data and models are on this machine.")
    for name, function in (("data", data), ("step", step), ("evaluate", evaluate), ("sweep", sweep)):
        bench.command(name)(takes_line(function))
    app.add_typer(bench, name="bench")


def data(
    line: Line = None,
    shots: Annotated[str, typer.Option(help="Shots to measure")] = "1,5",
    workers: Annotated[str, typer.Option(help="Numbers of loading processes to measure")] = "0,1,2,3,4",
    episodes: Annotated[int, typer.Option(min=1, max=1_000_000, help="Episodes timed for each")] = 48,
    repeats: Repeats = 3,
    json: Json = None,
) -> None:
    """Training episodes a second, memory a worker, and where the time goes."""
    shot_counts, worker_counts = numbers("--shots", shots, 1, 1000), numbers("--workers", workers, 0, 256)
    import torch

    from fsseg.bench import loading as bench
    from fsseg.bench.common import Findings, environment
    from fsseg.data.registry import build_source

    cfg = loaded(line)
    machine = environment(torch.device("cpu"))
    size = bench.Size(episodes, repeats)
    rows = bench.bench_loading(build_source(cfg), cfg, shot_counts, worker_counts, size)
    _tell(Findings("data", machine, rows, bench.format_loading(rows)), json)


def step(
    line: Line = None,
    batch: Annotated[
        str | None, typer.Option(help="Episodes a step, e.g. 1,2,4; else 1 on a CPU, train.batch_size on a GPU")
    ] = None,
    formats: Annotated[
        str, typer.Option(help="Number formats: run (as the line says), float32, tf32, bf16, fp16")
    ] = "run",
    layouts: Annotated[str, typer.Option(help="Layouts of the weights: usual, channels_last")] = "usual,channels_last",
    repeats: Repeats = 5,
    json: Json = None,
) -> None:
    """A training step, and evaluated images and episodes, beside the bare backbone on the same images.

    The line may be one of several cells (backbone=resnet50,resnet101): each is measured. All settings are as in a run,
    but that weights are random. At PASCAL's 473 px with ResNet-50 unless `dataset=` is given.
    """
    given = None if batch is None else numbers("--batch", batch, 1, 4096)
    from fsseg.bench import step as bench
    from fsseg.bench.common import Findings, environment, set_up

    chosen, ways = words("--formats", formats, bench.FORMATS), words("--layouts", layouts, bench.LAYOUTS)
    # Weights change no time, and where they are absent time can still be measured.
    cells = _cells([*paper_size(line), "backbone.pretrained=false"])
    device = set_up(cells[0].cfg)
    machine, rows = environment(device), []
    todo = [
        (composed.cfg, bench.Setting(size, number_format, ways, repeats))
        for composed in cells
        for size in given or ([1] if device.type == "cpu" else [composed.cfg.train.batch_size])
        for number_format in chosen
    ]
    for cfg, setting in todo:
        bench.check_setting(cfg, setting)
    for cfg, setting in todo:
        rows += bench.bench_step(cfg, setting)
        report = Findings("step", machine, rows, bench.format_steps(rows))
        if json is not None:  # whatever stops the next one, this one is kept
            report.write(json)
    _tell(report, json)


def evaluate(
    line: Line = None,
    sample: Annotated[
        int, typer.Option(min=2, max=1_000_000, help="Episodes of the sides that are not measured in full")
    ] = 24,
    share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of foreground that weights of no checkpoint predict")
    ] = 0.16,
    json: Json = None,
) -> None:
    """An evaluation beside the same code that keeps nothing, and beside its bare decoding and backbone.

    The line may be one of several cells (shot=1,5): each is measured. Weights of the backbone are random unless the
    line sets backbone.pretrained=, and all are the checkpoint's if it sets checkpoint=. Other weights are made to
    predict --share of each image as foreground, which is what objects of PASCAL take: a round's time depends on it.
    """
    from fsseg.bench import evaluation as bench
    from fsseg.bench.common import Findings, environment, set_up

    line = list(line or [])
    cells = _cells([*line, *([] if any("backbone.pretrained=" in o for o in line) else ["backbone.pretrained=false"])])
    device = set_up(cells[0].cfg)
    machine, rows = environment(device), []
    for composed in cells:
        rows.append(bench.bench_evaluation(composed, device, sample, share))
        report = Findings("evaluate", machine, rows, bench.format_evaluation(rows))
        if json is not None:
            report.write(json)
    _tell(report, json)


def sweep(
    line: Line = None,
    cells: Annotated[int, typer.Option(min=2, max=10_000, help="Cells of the grid")] = 8,
    repeats: Repeats = 3,
    json: Json = None,
) -> None:
    """What sweeps cost for each cell: cells with nearly no work, in one process and in a process each.

    Planned, run, run again when all are done, looked at and aggregated, in a temporary folder.
    """
    import torch

    from fsseg.bench import sweep as bench
    from fsseg.bench.common import Findings, environment
    from fsseg.process.logs import configure_logging
    from fsseg.report.aggregate import aggregate

    configure_logging("warning")
    machine = environment(torch.device("cpu"))
    rows = bench.bench_sweep(aggregate, line or [], cells, repeats)
    _tell(Findings("sweep", machine, rows, bench.format_sweep(rows)), json)


def _cells(line: list[str]) -> list[Composed]:
    """Every cell of a line.

    Raises:
        UserError: the first fault of any of them, or it is a base learner.
    """
    from fsseg.config.checks import validate
    from fsseg.config.compose import composer
    from fsseg.config.tasks import BASE_LEARNERS
    from fsseg.process.logs import configure_logging

    with composer(config_dir()) as c:
        made = [composed for _, composed in c.grid(line)]
    cells = []
    for composed in made:
        if isinstance(composed, UserError):
            raise composed
        validate(composed.cfg, False)
        if composed.cfg.model.name in BASE_LEARNERS:
            what = f"method={composed.cfg.model.name} has no episodes, and those are what is measured"
            raise UserError(what, "choose a few-shot method; `fsseg cost` counts the parts of this one")
        cells.append(composed)
    configure_logging(cells[0].cfg.log_level)
    return cells


def _tell(report: Findings, json: Path | None) -> None:
    if json is not None:
        report.write(json)
    print(report.text())


def numbers(option: str, text: str, least: int, most: int) -> list[int]:
    """The whole numbers of an option, `1,5`.

    Raises:
        UserError: it holds anything else.
    """
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < least or max(found) > most:
        raise UserError(f"{option} {text[:200]!r} is no list of numbers from {least} to {most}", "write e.g. 1,5")
    return found


def words(option: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    """The words of an option, `bf16,fp16`.

    Raises:
        UserError: it holds a word that is not allowed.
    """
    found = text.split(",")
    if not set(found) <= set(allowed):
        raise UserError(f"{option} {text[:200]!r} is no list of {', '.join(allowed)}", f"write e.g. {allowed[0]}")
    return found
