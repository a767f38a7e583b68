"""The bibliography: every entry complete, addressed and cited; every citation resolved."""

import re
from collections import Counter

import pytest
from conftest import ROOT
from pybtex.database import parse_file

BIB = ROOT / "book" / "references.bib"
DOI = re.compile(r"10\.\d{4,9}/\S+")
CITATION = re.compile(r"\{cite(?::\w+)?\}`([^`]+)`")


@pytest.fixture(scope="module")
def entries():
    return parse_file(str(BIB), bib_format="bibtex").entries


@pytest.fixture(scope="module")
def cited():
    """Where each key is cited."""
    places = {}
    for page in sorted((ROOT / "book").rglob("*.md")):
        for keys in CITATION.findall(page.read_text(encoding="utf-8")):
            for key in keys.split(","):
                places.setdefault(key.strip(), []).append(page.relative_to(ROOT).as_posix())
    return places


def test_there_are_at_least_sixty(entries):
    assert len(entries) >= 60


def test_no_entry_is_lost_in_reading(entries):
    assert len(entries) == len(re.findall(r"^@\w+\{", BIB.read_text(encoding="utf-8"), re.M))


def test_every_entry_has_author_title_and_year(entries):
    incomplete = {
        key
        for key, entry in entries.items()
        if not any(person.last_names for person in entry.persons.get("author", []))
        or not entry.fields.get("title", "").strip()
        or not re.fullmatch(r"(1[89]|20)\d\d", entry.fields.get("year", ""))
    }
    assert not incomplete


def test_every_entry_has_a_doi_or_an_address(entries):
    lost = {key for key, entry in entries.items() if not {"doi", "url"} & set(entry.fields)}
    assert not lost


def test_dois_and_addresses_have_the_right_form(entries):
    dois = {key: e.fields["doi"] for key, e in entries.items() if "doi" in e.fields}
    urls = {key: e.fields["url"] for key, e in entries.items() if "url" in e.fields}
    assert {key: doi for key, doi in dois.items() if not DOI.fullmatch(doi)} == {}
    assert {key: url for key, url in urls.items() if not re.fullmatch(r"https?://\S+", url)} == {}
    assert not [key for key, url in urls.items() if "doi.org/" in url], "a DOI belongs in doi"


def test_no_work_stands_twice(entries):
    def repeated(values):
        return [value for value, count in Counter(values).items() if count > 1]

    fields = [entry.fields for entry in entries.values()]
    assert not repeated(f["doi"].lower() for f in fields if "doi" in f)
    assert not repeated(f["url"].rstrip("/").lower() for f in fields if "url" in f)
    assert not repeated(re.sub(r"\W", "", f["title"].lower()) for f in fields)


def test_the_year_is_the_one_of_the_key(entries):
    dated = {key: re.search(r"-(\d{4})[a-z]?$", key) for key in entries}
    assert not [
        key
        for key, match in dated.items()
        if match and match.group(1) != entries[key].fields["year"]
    ]


def test_every_cited_key_exists(entries, cited):
    assert {key: pages for key, pages in cited.items() if key not in entries} == {}


def test_every_entry_is_cited(entries, cited):
    assert sorted(set(entries) - set(cited)) == []
