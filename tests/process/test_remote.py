"""Addresses: what is refused before anything is recorded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from run_directories import make_run

from fsseg.errors import UserError
from fsseg.process.remote import url_faults
from fsseg.sweep import sync

ROOT = Path(__file__).resolve().parents[2]
WITH_CREDENTIALS = [
    "s3://AKIAX:hunter2@bucket/x",
    "s3://AKIAX:hun/ter2@bucket/x",
    "s3://AKIAX:hun#ter2@bucket/x",
    "s3://AKIAX:12345@bucket/x",
    "sftp://me:hunter2@host/x",
    "sftp://me:hunter2@host:22/x",
    "sftp://me:hunter2@[::1]:22/x",
    "sftp://:hunter2@host/x",
    "me:hunter2@host",
    "nosuchthing://me:hunter2@host/x",
    "s3://bucket/x?key=hunter2",
    "s3://bucket/x?secret=hunter2",
    "s3://bucket/x?a=b&aws_secret_access_key=hunter2",
    "s3://bucket/x?X-Amz-Signature=hunter2",
    "s3://bucket/x?%6bey=hunter2",
    "https://host/x?token=hunter2",
    "abfs://box@account.dfs.core.windows.net/x?sv=2026&sig=hunter2",
    "https://host/x#access_token=hunter2",
    "sftp://host/x;password=hunter2",
    "file:///x?PASSWD=hunter2",
    "zip://x.zip::s3://AKIAX:hunter2@bucket/x",
]
WITHOUT = ["s3://bucket/x", "s3://bucket/a:b@c/x", "file:///folder/a=b, $HOME", "file:///a:b", "memory://x",
           "s3://bucket/keys/secret/token", "s3://bucket/x=1"]  # fmt: skip


@pytest.mark.parametrize("url", WITH_CREDENTIALS)
def test_credentials_in_an_address_are_refused_without_repeating_them(url: str) -> None:
    [fault] = url_faults(url)
    assert "password" in fault.what
    assert "AWS_PROFILE" in fault.fix
    for secret in ("hunter2", "ter2", "12345"):
        assert secret not in str(fault)


@pytest.mark.parametrize("url", WITHOUT)
def test_an_address_without_credentials_is_none(url: str) -> None:
    assert url_faults(url) == []


@pytest.mark.parametrize("url", ["sftp://me@host/x", "sftp://host:22/x", "sftp://me@[2001:db8::1]:22/x",
                                 "abfs://box@account.dfs.core.windows.net/x", "hdfs://host:9000/x"])  # fmt: skip
def test_a_users_name_and_a_port_are_no_credentials(url: str) -> None:
    assert not any("password" in fault.what for fault in url_faults(url))


@pytest.mark.parametrize("url", ["s3://bucket/a\nb", "s3://bucket/\x1b[31m", "s3://bucket/\0", "zip://a::s3://b/c"])
def test_an_address_with_odd_characters_or_of_two_parts_is_refused(url: str) -> None:
    [fault] = url_faults(url)
    assert fault.what.isprintable()


def test_no_command_repeats_or_records_a_stored_password(tmp_path: Path) -> None:
    secret = "s3://AKIAX:hunter2@bucket/x"
    run = make_run(tmp_path / "outputs", result=50.0, config={"name": "runs", "sync": {"url": secret}})
    outcomes = sync.catch_up([tmp_path / "outputs"])
    told = sync.text(outcomes)
    assert "password" in told
    assert "hunter2" not in told
    assert not run.sync_file.exists()
    for call in (lambda: sync.catch_up([tmp_path / "outputs"], secret), lambda: sync.mirror(secret, tmp_path / "m")):
        with pytest.raises(UserError) as error:
            call()
        assert "hunter2" not in str(error.value)


@pytest.mark.process
@pytest.mark.parametrize("multirun", [[], ["-m"]], ids=["one", "sweep"])
def test_a_run_with_a_password_in_its_address_writes_it_nowhere(multirun: list[str], tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / "train.py"), *multirun, "dataset=shapes5i", "backbone=tiny",
            f"output_dir={tmp_path / 'outputs'}", "sync.url='s3://AKIAX:hunter2@bucket/x'"]  # fmt: skip
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "AWS_PROFILE" in done.stderr + done.stdout
    written = [p for p in tmp_path.rglob("*") if p.is_file() and b"hunter2" in p.read_bytes()]
    assert written == []
