from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from server import Site, serve

from fsseg.data.setup import download as module
from fsseg.data.setup.download import Archive, download
from fsseg.data.setup.unpack import unpack
from fsseg.errors import UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 50_000, dtype=np.uint8).tobytes()


@pytest.fixture(autouse=True)
def direct(monkeypatch) -> None:
    monkeypatch.setenv("no_proxy", "*")  # a proxy of the environment must not come between the test and loopback


def archive_at(site: Site, content: bytes = CONTENT, **changes) -> Archive:
    site.files.setdefault("/a.zip", content)
    fields = {"size": len(content), "md5": hashlib.md5(content).hexdigest(), "urls": (f"{site.url}/a.zip",)}
    return Archive(name="a.zip", **{**fields, **changes})


def test_a_sound_server_needs_one_request(tmp_path: Path) -> None:
    with serve(Site()) as site:
        path = download(archive_at(site), tmp_path, pause=0)
        assert path.read_bytes() == CONTENT
        assert site.requests == [None]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip"]
        assert download(archive_at(site), tmp_path, pause=0) == path
        assert site.requests == [None]


def test_a_server_that_breaks_off_is_asked_for_the_rest(tmp_path: Path) -> None:
    with serve(Site(break_after=20_000)) as site:
        assert download(archive_at(site), tmp_path, pause=0).read_bytes() == CONTENT
        assert site.requests == [None, "bytes=20000-", "bytes=40000-"]


def test_an_interrupted_download_goes_on_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:30_000])
    with serve(Site()) as site:
        assert download(archive_at(site), tmp_path, pause=0).read_bytes() == CONTENT
        assert site.requests == ["bytes=30000-"]


def test_a_server_without_ranges_sends_all_again(tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(b"x" * 30_000)
    with serve(Site(ranges=False)) as site:
        assert download(archive_at(site), tmp_path, pause=0).read_bytes() == CONTENT


def test_another_version_on_the_server_is_not_appended_to_the_old_one(tmp_path: Path) -> None:
    old = bytes(reversed(CONTENT))
    with serve(Site(break_after=20_000, files={"/a.zip": old})) as site:
        archive = archive_at(site, md5=hashlib.md5(CONTENT).hexdigest())
        with pytest.raises(module._Broken):
            module._transfer(archive, archive.urls[0], tmp_path / "a.zip.part", 0)
        site.files["/a.zip"], site.etag, site.break_after = CONTENT, '"two"', None
        assert download(archive, tmp_path, pause=0).read_bytes() == CONTENT
        assert site.requests == [None, "bytes=20000-"]


def test_a_server_that_lies_about_the_size_is_not_believed(tmp_path: Path) -> None:
    says = "50007 bytes there, the official file 50000"
    with serve(Site(claim=lambda total: total + 7)) as site, pytest.raises(UserError, match=says):
        download(archive_at(site), tmp_path, pause=0)
    assert not (tmp_path / "a.zip").exists()


def test_a_server_that_sends_more_than_there_is_fills_no_disk(tmp_path: Path) -> None:
    endless = Site(spoil=lambda body, number: body * 3, silent=True)
    with serve(endless) as site, pytest.raises(UserError, match="more than 50000 bytes came"):
        download(archive_at(site), tmp_path, pause=0)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 1000


@pytest.mark.parametrize("behaviour", [{}, {"silent": True}, {"break_after": 20_000}, {"ranges": False}])
def test_a_file_of_unpublished_size_is_fetched_whole(tmp_path: Path, behaviour: dict) -> None:
    with serve(Site(**behaviour)) as site:
        archive = archive_at(site, size=None)
        assert download(archive, tmp_path, pause=0).read_bytes() == CONTENT
        assert download(archive, tmp_path, pause=0).read_bytes() == CONTENT
    (tmp_path / "a.zip").write_bytes(CONTENT + b"x")
    with pytest.raises(UserError, match=r"a\.zip has MD5"):
        download(archive, tmp_path, pause=0)


def test_a_file_of_unpublished_size_that_had_come_whole_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(CONTENT)  # the call was killed before it was checked
    with serve(Site()) as site:
        assert download(archive_at(site, size=None), tmp_path, pause=0).read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


@pytest.mark.parametrize("silent", [True, False])
def test_a_file_of_unpublished_size_fills_no_disk(tmp_path: Path, monkeypatch, silent: bool) -> None:
    monkeypatch.setattr(module, "_LARGEST_UNKNOWN", 40_000)
    with serve(Site(silent=silent)) as site, pytest.raises(UserError, match="more than 40000 bytes came"):
        download(archive_at(site, size=None), tmp_path, pause=0)


def test_corrupt_bytes_are_fetched_once_more_and_then_refused(tmp_path: Path) -> None:
    bad = b"\0" + CONTENT[1:]
    with serve(Site(spoil=lambda body, number: bad if number == 0 else body)) as site:
        assert download(archive_at(site), tmp_path / "once", pause=0).read_bytes() == CONTENT
    with serve(Site(spoil=lambda body, number: bad)) as site, pytest.raises(UserError) as caught:
        download(archive_at(site), tmp_path / "always", pause=0)
    assert hashlib.md5(bad).hexdigest() in caught.value.what
    assert hashlib.md5(CONTENT).hexdigest() in caught.value.what
    assert list((tmp_path / "always").glob("*.zip*")) == []


def test_a_second_place_is_tried_when_the_first_fails(tmp_path: Path) -> None:
    with serve(Site()) as site:
        archive = archive_at(site, urls=(f"{site.url}/gone.zip", f"{site.url}/a.zip"))
        assert download(archive, tmp_path, pause=0).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_a_dead_one_named(tmp_path: Path) -> None:
    with serve(Site(refuse=3)) as site:
        archive = archive_at(site)
        assert download(archive, tmp_path / "a", pause=0).read_bytes() == CONTENT
    with pytest.raises(UserError, match=r"a\.zip cannot be fetched: http://127") as caught:
        download(archive, tmp_path / "b", pause=0)
    assert str(tmp_path / "b" / "a.zip") in caught.value.fix


def test_a_wrong_file_of_the_users_own_is_named_not_replaced(tmp_path: Path) -> None:
    archive = Archive(name="a.zip", urls=("http://127.0.0.1:9/a.zip",), size=5, md5=hashlib.md5(b"right").hexdigest())
    for content, says in ((b"short", "MD5"), (b"shorter", "7 bytes")):
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(UserError, match=says):
            download(archive, tmp_path, pause=0)
        assert (tmp_path / "a.zip").read_bytes() == content


def test_a_full_disk_is_seen_before_anything_is_fetched(tmp_path: Path, monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage(10**12, 10**12, 10**9))
    with serve(Site()) as site:
        with pytest.raises(UserError, match=r"download a\.zip takes 5\.0 GB.* has 1\.0 GB free"):
            download(archive_at(site, size=5 * 10**9), tmp_path, pause=0)
        assert site.requests == []


def zip_of(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
        if link is not None:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            file.writestr(info, "/etc/passwd")
    return path


def tar_of(path: Path, members: dict[str, bytes], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc"
            file.addfile(info)
    return path


def plain(name: str, **changes) -> Archive:
    return Archive(name=name, urls=("http://127.0.0.1:9/",), size=1, md5=None, **changes)


def below(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_archives_unpack_into_their_place(tmp_path: Path, name: str) -> None:
    make = zip_of if name.endswith("zip") else tar_of
    path = make(
        tmp_path / name, {"top/in/x.txt": b"x", "top/in/deep/y.txt": b"y", "other/z.txt": b"z", "top/no.txt": b""}
    )
    root = tmp_path / "root"
    (root / "data" / "in").mkdir(parents=True)
    (root / "data" / "in" / "x.txt").write_text("stale")
    (root / "data" / "in" / "mine.txt").write_text("mine")
    assert unpack(plain(name, strip="top", into="data", only=("in/",)), path, root) == 2
    assert below(root) == {"data/in/x.txt", "data/in/deep/y.txt", "data/in/mine.txt"}
    assert (root / "data" / "in" / "x.txt").read_text() == "x"


@pytest.mark.parametrize("evil", ["../out.txt", "/tmp/out.txt", "a/../../out.txt", "..\\out.txt", "C:/out.txt"])
@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_members_that_would_leave_the_folder_are_refused(tmp_path: Path, name: str, evil: str) -> None:
    make = zip_of if name.endswith("zip") else tar_of
    path = make(tmp_path / name, {"good.txt": b"1", evil: b"2"})
    with pytest.raises(UserError, match="would leave the folder"):
        unpack(plain(name), path, tmp_path / "root")
    assert below(tmp_path) == {name}


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_links_are_refused(tmp_path: Path, name: str) -> None:
    make = zip_of if name.endswith("zip") else tar_of
    path = make(tmp_path / name, {"good.txt": b"1"}, link="link")
    with pytest.raises(UserError, match="is a link"):
        unpack(plain(name), path, tmp_path / "root")
    assert below(tmp_path) == {name}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_a_damaged_archive_leaves_nothing_in_place(tmp_path: Path, name: str) -> None:
    make = zip_of if name.endswith("zip") else tar_of
    path = make(tmp_path / name, {"one.bin": CONTENT, "two.bin": CONTENT})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be unpacked") as caught:
        unpack(plain(name), path, tmp_path / "root")
    assert name in caught.value.what
    assert below(tmp_path) == {name}


def test_an_interrupted_unpacking_is_invisible_and_repeatable(tmp_path: Path, monkeypatch) -> None:
    path = tar_of(tmp_path / "a.tar", {"d/one.bin": b"1", "d/two.bin": b"2"})
    copied: list[int] = []

    def die_at_second(source, target, length) -> None:
        if copied:
            raise KeyboardInterrupt
        copied.append(1)
        target.write(source.read())

    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "copyfileobj", die_at_second)
        with pytest.raises(KeyboardInterrupt):
            unpack(plain("a.tar"), path, tmp_path / "root")
    assert not (tmp_path / "root" / "d").exists()
    assert unpack(plain("a.tar"), path, tmp_path / "root") == 2
    assert below(tmp_path / "root") == {"d/one.bin", "d/two.bin"}
