"""The command `fsseg predict`: masks of a user's own images by the example of a few; `fsseg.cli.app` adds it."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from fsseg.cli.line import takes_line
from fsseg.errors import UserError, visible

if TYPE_CHECKING:
    from fsseg.engine.predict import Predictor

_OVERRIDE = re.compile(r"[+~]*[A-Za-z_][\w./@]*=")

Words = Annotated[
    list[str], typer.Argument(help="Images: files, folders, patterns in quotes, - for a list; and overrides: key=value")
]


@dataclass(frozen=True)
class PredictOptions:
    """The options of the command; each field is one."""

    checkpoint: Annotated[Path | None, typer.Option(help="A last.pt or a run directory; none: training-free")] = None
    support: Annotated[list[str] | None, typer.Option(metavar="IMAGE:MASK", help="An example; may be repeated")] = None
    support_dir: Annotated[
        list[Path] | None, typer.Option(help="A folder with examples of each class: cat/1.jpg, cat/1.png, dog/...")
    ] = None
    class_name: Annotated[str, typer.Option("--class", help="What the examples of --support show")] = "object"
    out: Annotated[Path, typer.Option(help="Folder for masks, overlays and the table")] = Path("predictions")
    truth_dir: Annotated[
        Path | None, typer.Option(help="True masks, to score: <class>/<name>.png, or numbers and a classes.txt")
    ] = None
    batch_size: Annotated[int | None, typer.Option(min=1, max=4096, help="Images computed together")] = None
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write them too, as PNG of 16 bits")] = False
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace predictions that are there")] = False


def add_to(app: typer.Typer) -> None:
    app.command(name="predict")(takes_line(_with_options(predict)))


def _with_options(function: Callable[[list[str], PredictOptions], None]) -> Callable[..., None]:
    """The command as typer wants it, with a parameter for each option."""

    @wraps(function)
    def command(words: list[str], **given: Any) -> None:
        function(words, PredictOptions(**given))

    hints = get_type_hints(PredictOptions, include_extras=True)
    parameters = [inspect.Parameter("words", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Words)]
    parameters += [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
        for f in fields(PredictOptions)
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def predict(words: list[str], options: PredictOptions) -> None:
    """Segment your own images by the example of a few: masks, overlays, a table, a contact sheet."""
    from fsseg.data.own_files import Truths, find_queries, find_supports, folder_for
    from fsseg.process.logs import configure_logging

    configure_logging("info")
    line, places = _sorted(words)
    images = find_queries(places, sys.stdin if "-" in places else ())
    supports = find_supports(options.support or [], options.support_dir or [], options.class_name)
    truths = None if options.truth_dir is None else Truths(options.truth_dir, tuple(supports))
    if truths is not None:
        truths.check()
    folder_for(options.out)
    predictor = predictor_of(options.checkpoint, line)

    from fsseg.engine.predict_files import Wanted, predict_files

    ready = predictor.prepare(supports)
    wanted = Wanted(options.out, options.batch_size, options.overwrite, options.probabilities, truths)
    done = predict_files(predictor, ready, images, wanted)
    print(visible_lines(done.text(wanted, images, ready.classes)), flush=True)
    if (failure := done.failure()) is not None:
        raise failure


def visible_lines(text: str) -> str:
    return "\n".join(map(visible, text.split("\n")))


def _sorted(words: list[str]) -> tuple[list[str], list[str]]:
    """Overrides, and images: a word is an override if it begins as `key=` and no file has that name."""
    line = [word for word in words if _OVERRIDE.match(word) and not Path(word).exists()]
    return line, [word for word in words if word not in line]


def names_a_model(line: list[str]) -> bool:
    """Whether a line says which model it means, without a checkpoint beside it."""
    return any(word.startswith(("method=", "checkpoint=")) for word in line)


def predictor_of(checkpoint: Path | None, line: list[str]) -> Predictor:
    """The model that a command names: of a checkpoint with what the line changes, or of the line alone.

    Raises:
        UserError: there is no such model, or it must be trained first.
    """
    if checkpoint is not None:
        device = next((word.partition("=")[2] for word in reversed(line) if word.startswith("device=")), "auto")
        workers = [] if any(word.startswith("num_workers=") for word in line) else ["num_workers=-1"]

        from fsseg.engine.predict import Predictor  # torch: not before the files are found

        return Predictor.from_checkpoint(checkpoint, device, [*line, *workers])
    if not names_a_model(line):
        what = "no model is named"
        raise UserError(
            what, "give --checkpoint last.pt, or a method that trains nothing: method=prototype backbone=..."
        )
    from fsseg.cli.data import loaded, paper_size

    cfg = loaded(paper_size(line))

    from fsseg.engine.predict import Predictor

    return Predictor.from_config(cfg)
