"""How much a search finds: TPE and random search against the line's own settings, on several seeds of the sampler.

    python tests/benchmarks/search_seeds.py --jobs 2        # the figures of docs/search.md

Every search is a `python train.py -m search=...` of its own, in a folder of its own: nothing is shared between them.
The first trial of each is the line as it stands, so both samplers have the same budget. What is best by `base/miou` is
in part luck with the images that are held out and the order of the batches: the settings of each winner are trained
again under other seeds, which draw other images to hold out, beside the line's own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student

from fsseg.cell.record import RunDirectory
from fsseg.sweep.search import view
from fsseg.sweep.search.space import words
from fsseg.sweep.search.study import Study

SAMPLERS = ("tpe", "random")
LINE = ("search=lr_and_rounds", "dataset=shapes5i", "device=cpu", "logger.figures=0", "eval.base_share=0.2")
AGAIN = ("eval.enabled=false", "eval.every_epochs=1000")


@dataclass(frozen=True)
class Found:
    """One search.

    Attributes:
        scores: of its trials, in their order; the first is the line itself. One that diverged has 0.
        chosen: settings of the best one, as overrides.
    """

    scores: tuple[float, ...]
    chosen: tuple[str, ...]

    @property
    def best(self) -> float:
        return max(self.scores)

    def after(self, trials: int) -> float:
        """The best of the first trials."""
        return max(self.scores[:trials])


def train_py(folder: Path, line: Sequence[str]) -> None:
    """Start it with `line`, and wait.

    Raises:
        RuntimeError: it fails; with the end of what it printed.
    """
    root = Path(__file__).resolve().parents[2]
    command = [
        sys.executable,
        str(root / "train.py"),
        "-m",
        f"output_dir={folder}",
        f"dataset.root={folder}/data",
        *line,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{(done.stdout + done.stderr)[-3000:]}")


def search(folder: Path, name: str, line: Sequence[str]) -> Found:
    """Start a search and read its study."""
    train_py(folder, [*LINE, f"name={name}", *line])
    return found(view.studies_of([folder / name])[0])


def found(study: Study) -> Found:
    best = study.best
    assert best is not None
    return Found(tuple(t.value for t in study.trials() if t.value is not None), tuple(words(best.chosen)))


def again(folder: Path, name: str, line: Sequence[str], seeds: Sequence[int]) -> float:
    """Mean `base/miou` of settings that are trained under other seeds."""
    train_py(folder, [*LINE[1:], *AGAIN, f"name={name}", f"seed={','.join(map(str, seeds))}", *line])
    scores = []
    for file in (folder / name).rglob("result.json"):
        result = RunDirectory(file.parent).result()
        assert result is not None
        assert result.training is not None
        assert result.training.base_validation is not None
        scores.append(result.training.base_validation.miou)
    assert len(scores) == len(seeds)
    return statistics.fmean(scores)


def spread(values: Sequence[float]) -> str:
    """`61.20 ± 0.80 (60.10 to 62.30)`: mean, standard deviation, range."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.2f} ± {deviation:.2f} ({min(values):.2f} to {max(values):.2f})"


def difference(first: Sequence[float], second: Sequence[float]) -> str:
    """Mean of the differences of pairs with its 95 % interval by Student's t; says so when it holds 0: a tie."""
    each = [a - b for a, b in zip(first, second, strict=True)]
    mean = statistics.fmean(each)
    if len(each) < 2:
        return f"{mean:+.2f}"
    half = float(student.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / len(each) ** 0.5
    told = "a tie" if mean - half <= 0 <= mean + half else "no tie"
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}], {told}"


def report(searches: Mapping[str, Sequence[Found]], anew: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """The figures in lines.

    Args:
        searches: sampler -> one for each seed.
        anew: sampler -> base/miou of its winners under other training seeds, and `own` that of the line as it stands.
    """
    own = [one.scores[0] for one in searches["tpe"]]
    yield f"the line's own settings: {spread(own)}"
    for sampler, each in searches.items():
        yield f"{sampler}, best of {len(each[0].scores)} trials: {spread([one.best for one in each])}"
        for one in each:
            yield f"    {one.best:.2f}  {' '.join(one.chosen)}"
        steps = sorted({5, 10, 15, len(each[0].scores)} & set(range(1, len(each[0].scores) + 1)))
        means = (f"{n}: {statistics.fmean([one.after(n) for one in each]):.2f}" for n in steps)
        yield f"    best so far, mean, after trials {', '.join(means)}"
    best = {sampler: [one.best for one in each] for sampler, each in searches.items()}
    yield f"tpe - own: {difference(best['tpe'], own)}"
    yield f"tpe - random: {difference(best['tpe'], best['random'])}"
    if anew:
        yield "trained again under other seeds:"
        for name, values in anew.items():
            yield f"    {name}: {spread(values)}"
        yield f"    tpe - own: {difference(anew['tpe'], list(anew['own']) * len(anew['tpe']))}"
        yield f"    tpe - random: {difference(anew['tpe'], anew['random'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/search_seeds"))
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the samplers")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument("--episodes", type=int, default=200, help="of held-out images of base classes")
    parser.add_argument("--again", type=int, default=3, help="other training seeds for the winners; 0: none")
    parser.add_argument("--jobs", type=int, default=1, help="searches at a time")
    args = parser.parse_args()
    sizes = [f"train.max_steps={args.steps}", f"eval.base_episodes={args.episodes}"]
    rules = ["search.every_epochs=1000", f"search.trials={args.trials}"]  # scored once, at the end
    folder = args.folder.resolve()
    train_py(folder, [*LINE[1:], *AGAIN, "name=data", "train.max_steps=1", "eval.base_episodes=1"])  # makes the images
    with ThreadPoolExecutor(args.jobs) as pool:
        asked = {
            (sampler, seed): pool.submit(
                search, folder, f"{sampler}_{seed}",
                [*sizes, *rules, f"search.sampler={sampler}", f"search.seed={seed}"],
            )
            for seed in range(args.seeds) for sampler in SAMPLERS
        }  # fmt: skip
        searches = {s: [asked[s, seed].result() for seed in range(args.seeds)] for s in SAMPLERS}
        settings = {s: [one.chosen for one in each] for s, each in searches.items()}
        settings["own"] = [()]
        rerun = {
            (name, n): pool.submit(again, folder, f"again_{name}_{n}", [*sizes, *words], range(1, args.again + 1))
            for name, chosen in settings.items() for n, words in enumerate(chosen) if args.again
        }  # fmt: skip
        anew = {name: [done.result() for (of, _), done in rerun.items() if of == name] for name in settings if rerun}
    print("\n".join(report(searches, anew)), flush=True)


if __name__ == "__main__":
    main()
