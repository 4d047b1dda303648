"""LICENSE, CITATION.cff, pyproject.toml and the changelog: valid, and of one mind."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

import fsseg

ROOT = Path(__file__).resolve().parents[2]

# sha256 of https://www.apache.org/licenses/LICENSE-2.0.txt
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"

# What the schema of the Citation File Format 1.2.0 requires, and what it allows of the keys a file like ours may have.
REQUIRED = {"cff-version", "message", "title", "authors"}
ALLOWED = REQUIRED | {
    "abstract", "commit", "contact", "date-released", "doi", "identifiers", "keywords", "license", "license-url",
    "preferred-citation", "references", "repository", "repository-artifact", "repository-code", "type", "url",
    "version",
}  # fmt: skip
PERSON = {"address", "affiliation", "alias", "city", "country", "email", "family-names", "fax", "given-names",
          "name-particle", "name-suffix", "orcid", "post-code", "region", "tel", "website"}  # fmt: skip
ENTITY = {"name", "address", "alias", "city", "country", "email", "location", "website", "date-start", "date-end"}


def project() -> dict[str, str]:
    """The plain `key = "value"` lines of pyproject's [project] section (tomllib came with Python 3.11)."""
    section = (ROOT / "pyproject.toml").read_text().partition("\n[project]\n")[2].partition("\n[")[0]
    return dict(re.findall(r'^([\w-]+) = "(.*)"$', section, re.MULTILINE))


def citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_licence_is_the_whole_text_of_apache_2_and_is_named_everywhere() -> None:
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE
    assert project()["license"] == citation()["license"] == "Apache-2.0"
    assert "Apache-2.0" in (ROOT / "README.md").read_text()
    assert not re.search(r'"License ::', (ROOT / "pyproject.toml").read_text()), "PEP 639: no classifier beside license"


def test_the_citation_is_valid() -> None:
    cff = citation()
    assert set(cff) >= REQUIRED
    assert set(cff) <= ALLOWED
    assert cff["cff-version"] == "1.2.0"
    assert cff["type"] in ("software", "dataset")
    for who in (cff, *cff["references"]):
        assert who["authors"], who["title"]
        for author in who["authors"]:
            assert set(author) <= PERSON or ("name" in author and set(author) <= ENTITY), author
    for reference in cff["references"]:
        assert {"authors", "title", "type"} <= set(reference)
        assert isinstance(reference["year"], int)
        assert reference["conference"]["name"]


def test_the_citation_names_this_software_and_the_paper() -> None:
    cff = citation()
    assert cff["title"].startswith("fsseg")
    assert cff["version"] == project()["version"] == fsseg.__version__
    assert f'"{cff["authors"][0]["name"]}"' in (ROOT / "pyproject.toml").read_text()
    (paper,) = cff["references"]
    assert paper["title"] in " ".join((ROOT / "fsseg" / "model" / "abcb.py").read_text().split())
    assert [a["family-names"] for a in paper["authors"]] == ["Zhu", "Chen", "Yin", "See", "Liu"]
    assert paper["year"] == 2024


def test_python_versions_are_said_alike() -> None:
    assert project()["requires-python"] == ">=3.10"
    versions = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert versions[0] == "3.10"
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text()
        assert f"Python {versions[0]} or newer" in text
        assert set(re.findall(r"Python (3\.\d+)", text)) == {versions[0], "3.11"}  # the second is what CI runs


def test_the_changelog_has_the_present_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert headings[1] == fsseg.__version__
    for kind in re.findall(r"^### (.+)$", text, re.MULTILINE):
        assert kind in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
