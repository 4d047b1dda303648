from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fsseg.data.arrays import cache_folders, find_store, keep_store, pack_names, read_store, unpack_names, write_store
from fsseg.errors import UserError

KEY = {"rule": 1, "file": "x"}


def arrays() -> dict[str, np.ndarray]:
    return {
        "a": np.arange(7, dtype=np.int64).reshape(7, 1),
        "b": np.zeros((0, 2), np.int32),
        "c": np.array([3], np.uint8),
    }


def test_a_store_gives_back_what_was_written(tmp_path: Path) -> None:
    write_store(tmp_path / "s", KEY, arrays())
    read = read_store(tmp_path / "s", KEY)
    assert read is not None
    for name, array in arrays().items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_a_store_of_other_annotations_reads_as_absent(tmp_path: Path) -> None:
    write_store(tmp_path / "s", KEY, arrays())
    assert read_store(tmp_path / "s", {**KEY, "rule": 2}) is None
    assert read_store(tmp_path / "none", KEY) is None


def test_a_store_cut_short_anywhere_reads_as_absent(tmp_path: Path) -> None:
    write_store(tmp_path / "s", KEY, arrays())
    whole = (tmp_path / "s").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "s").write_bytes(whole[:length])
        assert read_store(tmp_path / "s", KEY) is None, length


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    write_store(tmp_path / "s", KEY, arrays())
    whole = bytearray((tmp_path / "s").read_bytes())
    whole[-128] ^= 1  # the first number of array a: a and c fill one block of 64 bytes each
    (tmp_path / "s").write_bytes(bytes(whole))
    assert read_store(tmp_path / "s", KEY) is None


def test_names_survive_packing() -> None:
    for names in ([], ["a"], ["2007_000032", "ö", "x y"]):
        assert unpack_names(pack_names(names)) == names


def test_index_beside_the_data_is_preferred_and_the_user_cache_takes_over(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "data"
    root.mkdir()
    folders = cache_folders(root, None)
    assert keep_store(folders, "s", KEY, arrays()) == root / ".fsseg" / "s"
    (root / ".fsseg" / "s").unlink()
    (root / ".fsseg").rmdir()
    (root / ".fsseg").write_text("stands in the way like a read-only folder")
    path = keep_store(folders, "s", KEY, arrays())
    assert path.is_relative_to(tmp_path / "cache" / "fsseg")
    assert find_store(folders, "s", KEY) is not None


def test_two_data_roots_do_not_share_a_cache_folder(tmp_path: Path) -> None:
    assert cache_folders(tmp_path / "a" / "coco", "/c") != cache_folders(tmp_path / "b" / "coco", "/c")


def test_nowhere_to_write_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as caught:
        keep_store(cache_folders(tmp_path, tmp_path / "file"), "s", KEY, arrays())
    assert "dataset.cache" in caught.value.fix
