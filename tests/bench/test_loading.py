"""The benchmark's rows say what was measured."""

from __future__ import annotations

from test_loader import make_cfg, make_source

from fsseg.bench.loading import Size, bench_loading, format_loading


def test_a_row_for_every_shot_and_number_of_workers() -> None:
    rows = bench_loading(make_source(), make_cfg(), shots=(1, 2), workers=(0, 1), size=Size(8, 2))
    assert [(r.shot, r.workers) for r in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for row in rows:
        assert row.seconds_per_episode.number == 2
        assert row.episodes_per_second == 1 / row.seconds_per_episode.median > 0
        assert row.worker_mb > 1
        assert min(row.decode_ms, row.mask_ms, row.transform_ms) > 0
        assert row.image_size == 33
    assert len(format_loading(rows).splitlines()) == 6


def test_a_shot_that_the_lists_are_too_small_for_is_left_out() -> None:
    rows = bench_loading(make_source(), make_cfg(), shots=(1, 60), workers=(0,), size=Size(4, 1))
    assert [r.shot for r in rows] == [1]
