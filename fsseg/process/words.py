"""Durations, sizes, ranges, counts and names as short text, for reading."""

from __future__ import annotations

from collections.abc import Sequence


def span(seconds: float) -> str:
    """40 s, 12 min, 3.4 h, 5.2 d."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} d"


def size(count: float | None) -> str:
    """4.21 GB, 500 MB, 12 kB; `?` for None."""
    if count is None:
        return "?"
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 seed`, `5 seeds`; `plural` where it is no `s` more."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def every(number: int, noun: str) -> str:
    """`every epoch`, `every 5 epochs`."""
    return f"every {noun}" if number == 1 else f"every {number} {noun}s"


def several(names: Sequence[str], most: int = 8) -> str:
    """`a, b, c`, of many the first and how many more."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def extent(low: float, high: float, unit: str, most_only: bool = False) -> str:
    """`0.5-1.0 h`, `3.0 GB` if both ends look alike, `up to 80 h` if only the upper end is meaningful."""
    if most_only and high > low:
        return f"up to {_figure(high)} {unit}".rstrip()
    alike = abs(high - low) < 0.005 * max(high, 1e-9)
    return (f"{_figure(low)} {unit}" if alike else f"{_figure(low)}-{_figure(high)} {unit}").rstrip()


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
