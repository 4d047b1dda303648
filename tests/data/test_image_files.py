"""Image files before they are decoded: sizes, headers, and what is kept of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from trees import write_jpeg

from fsseg.data import image_files
from fsseg.data.image_files import Stamp, read_headers, sizes_fingerprint, stamps_of


def write_picture(path: Path) -> bytes:
    """A file of 50 x 40 pixels of noise in the format of its name, and its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(3).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def looked_at(path: Path, folders: list[Path] | None = None) -> tuple[dict[Path, tuple[int, int]], dict[Path, str]]:
    return read_headers("train", path.parent, stamps_of([path]), folders or [])


def test_sizes_are_those_of_the_files_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(b"123")
    (tmp_path / "y.jpg").write_bytes(b"12345")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    os.utime(tmp_path / "y.jpg", ns=(7, 8))
    names = ("a/x.jpg", "y.jpg", "folder.jpg", "link.jpg", "absent.jpg", "absent/z.jpg", "y.jpg/z.jpg")
    found = stamps_of([tmp_path / name for name in names])
    assert set(found) == {tmp_path / "a/x.jpg", tmp_path / "y.jpg"}
    assert found[tmp_path / "a/x.jpg"].size == 3
    assert found[tmp_path / "y.jpg"] == Stamp(5, 8)


def test_the_fingerprint_is_over_names_and_sizes_not_over_places_and_times() -> None:
    one = {"i": Path("/a/i.jpg"), "k": Path("/a/k.jpg")}
    other = {"i": Path("/b/c/i.jpg"), "k": Path("/b/c/k.jpg")}
    expected = hashlib.sha256(b"i\t300\nk\t5").hexdigest()[:16]
    assert sizes_fingerprint(one, {one["i"]: Stamp(300, 1), one["k"]: Stamp(5, 2)}) == expected
    assert sizes_fingerprint(other, {other["i"]: Stamp(300, 8), other["k"]: Stamp(5, 9)}) == expected
    assert sizes_fingerprint(one, {one["i"]: Stamp(300, 1), one["k"]: Stamp(6, 2)}) != expected
    assert sizes_fingerprint(one, {one["i"]: Stamp(300, 1)}) is None


@pytest.mark.parametrize("ending", ["jpg", "png", "bmp"])
def test_a_whole_image_has_its_size(ending: str, tmp_path: Path) -> None:
    write_picture(path := tmp_path / f"x.{ending}")
    assert looked_at(path) == ({path: (40, 50)}, {})


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_bytes_behind_the_end_are_no_fault(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    path.write_bytes(write_picture(path) + b"more of it")
    assert looked_at(path) == ({path: (40, 50)}, {})


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, -1, -2, -8])
def test_a_file_that_is_cut_short_is_told(ending: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / f"x.{ending}"
    data = write_picture(path)
    path.write_bytes(data[: int(kept * len(data)) if kept >= 0 else int(kept)])
    shapes, reasons = looked_at(path)
    assert shapes == {}
    assert str(path) in reasons[path]


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_zeros_in_place_of_the_rest_are_told(ending: str, tmp_path: Path) -> None:
    """What a copy leaves that reserved its room and broke off; Pillow decodes such a JPEG without a word."""
    path = tmp_path / f"x.{ending}"
    data = write_picture(path)
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(len(data) - half))
    shapes, reasons = looked_at(path)
    assert shapes == {}
    assert str(path) in reasons[path]


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_text("<html>not found</html>")
    assert "not an image" in looked_at(path)[1][path]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose headers are read."""
    names: list[str] = []
    map_files = image_files.map_files

    def noting(task: str, paths: list[str], what: str) -> Any:
        names.extend(Path(path).name for path in paths)
        return map_files(task, paths, what)

    monkeypatch.setattr(image_files, "map_files", noting)
    return names


def test_only_new_and_changed_files_are_read_again(tmp_path: Path, read: list[str]) -> None:
    root, folders = tmp_path / "data", [tmp_path / "cache"]
    paths = [root / f"{name}.jpg" for name in "abcd"]
    for path in paths:
        write_jpeg(path, (40, 50))

    def look(split: str = "train") -> tuple[dict[Path, tuple[int, int]], dict[Path, str]]:
        read.clear()
        return read_headers(split, root, stamps_of(paths), folders)

    whole = (dict.fromkeys(paths, (40, 50)), {})
    assert look() == whole
    assert sorted(read) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert look() == whole
    assert read == []
    stat = paths[1].stat()
    write_jpeg(paths[0], (20, 30))
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    paths[2].write_bytes(b"nonsense")
    shapes, reasons = look()
    assert sorted(read) == ["a.jpg", "b.jpg", "c.jpg"]
    assert shapes == {paths[0]: (20, 30), paths[1]: (40, 50), paths[3]: (40, 50)}
    assert set(reasons) == {paths[2]}
    look()
    assert read == ["c.jpg"]  # a fault is not kept: it may be of the moment
    look("val")
    assert len(read) == 4


def test_a_moved_data_set_is_not_read_again_and_a_damaged_store_is(tmp_path: Path, read: list[str]) -> None:
    root, cache = tmp_path / "data", tmp_path / "cache"
    write_jpeg(root / "images" / "a.jpg")
    read_headers("val", root, stamps_of([root / "images" / "a.jpg"]), [cache])
    root.rename(moved := tmp_path / "moved")
    read.clear()
    path = moved / "images" / "a.jpg"
    assert read_headers("val", moved, stamps_of([path]), [cache])[0] == {path: (40, 50)}
    assert read == []
    (store,) = cache.iterdir()
    store.write_bytes(store.read_bytes()[:-1])
    assert read_headers("val", moved, stamps_of([path]), [cache])[0] == {path: (40, 50)}
    assert read == ["a.jpg"]


def test_a_cache_that_cannot_be_written_hinders_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_jpeg(path := tmp_path / "data" / "a.jpg")
    (tmp_path / "file").write_text("")
    assert looked_at(path, [tmp_path / "file" / "cache"]) == ({path: (40, 50)}, {})
    assert "the headers are read again at every start" in caplog.text
