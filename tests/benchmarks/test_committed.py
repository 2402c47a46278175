# SPDX-License-Identifier: Apache-2.0
"""Committed pages, tables and pictures of the benchmarks follow from their JSON, and name it."""

from __future__ import annotations

import pytest
from places import ROOT

from benchmarks import ops, results
from benchmarks.parallel import SCHEMA, table
from benchmarks.report import best_peer, grouped, headline, readme, six_shapes, table_csv

FILES = sorted((ROOT / "benchmarks" / "results").glob("*/*.json"))
PARALLEL = [path for path in FILES if path.stem == "parallel"]
COMMITTED = [path for path in FILES if path not in PARALLEL]

pytestmark = pytest.mark.skipif(not COMMITTED, reason="no results beside these tests")


@pytest.mark.parametrize("page", ["README.md", "benchmarks/results/README.md"])
def test_pages_have_the_figures_of_their_results(page):
    assert readme.current(ROOT / page)


def test_every_machine_has_a_table_on_the_page_of_results():
    page = (ROOT / "benchmarks" / "results" / "README.md").read_text(encoding="utf-8")
    named = {source for kind, source, _ in readme.MARKED.findall(page) if kind == "benchmarks"}
    assert {source.split("/")[0] for source in named} == {path.parent.name for path in COMMITTED}


def test_every_picture_is_linked_from_a_page():
    folder = ROOT / "benchmarks" / "results"
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = (folder / "README.md").read_text(encoding="utf-8") + page.replace("benchmarks/results/", "")
    assert [p for p in folder.rglob("*.svg") if p.relative_to(folder).as_posix() not in pages] == []


@pytest.mark.parametrize("name", six_shapes.INK)
def test_the_picture_of_six_shapes_has_the_figures_of_its_results(name):
    """The bytes depend on matplotlib's version; the texts do not."""
    for path in COMMITTED:
        if path.stem != "cpu":
            continue
        picture = (path.parent / name).read_text(encoding="utf-8")
        cells = grouped(headline(results.read(path)), "cell")
        for cell in six_shapes.CELLS:
            rows = {row["provider"]: row for row in cells[(cell,)]}
            peer = best_peer(rows.values())
            assert f">{six_shapes.times(rows['torch'], rows['softkern'])}</text>" in picture
            assert f">softkern {six_shapes.speedup(rows['softkern'])}</text>" in picture
            assert f">{peer['provider']} {six_shapes.speedup(peer)}</text>" in picture


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_tables_are_those_of_the_json(path, tmp_path):
    found = results.read(path)
    table_csv.write(found, tmp_path / "table.csv")
    assert path.with_suffix(".csv").read_text() == (tmp_path / "table.csv").read_text()
    assert path.with_suffix(".md").read_text() == readme.block(found, path.name)


def test_figures_of_sharded_classes_follow_from_the_samples():
    for path in PARALLEL:
        found = results.read(path, SCHEMA)
        assert path.with_suffix(".md").read_text() == table.block(found, path.name)
        assert found["environment"]["dirty"] == "no" and found["rows"]
        for row in found["rows"]:
            assert row["status"] == "ok", row["reason"]
            assert row["median"] == pytest.approx(results.summary(row["samples"])["median"])


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_figures_follow_from_the_samples(path):
    found = results.read(path)
    assert found["environment"]["dirty"] == "no" and len(found["environment"]["commit"]) == 40
    assert not found["interrupted"] and found["rows"]
    measured, plain = {}, {}
    for row in found["rows"]:
        if row["status"] != "ok":
            assert row["reason"]
            continue
        group = (row["cell"], row["regime"], row["threads"])
        assert row["median"] == pytest.approx(results.summary(row["samples"])["median"], rel=1e-3)
        baseline = measured.setdefault(group, row)
        assert row["baseline"] == baseline["provider"]
        rounds = len(row["samples"])
        assert rounds <= len(baseline["samples"])
        ratio = results.paired_ratio(baseline["samples"][:rounds], row["samples"])
        assert row["ratio"] == pytest.approx(ratio, rel=1e-3, abs=1e-4)
        if row["provider"] == results.PLAIN:
            plain[group] = row
        if row["bytes"]:
            assert row["gbps"] == pytest.approx(row["bytes"] / row["median"] / 1e9, rel=1e-2)

    for row in found["rows"]:
        group = (row["cell"], row["regime"], row["threads"])
        if row["provider"] == "softkern" and group in plain:
            times = results.common_ratio(row["samples"], plain[group]["samples"])
            assert row["times_plain"] == pytest.approx(times, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_bytes_are_those_of_the_formulas(path):
    """A formula that changes makes the committed percentages wrong: measure again, or mend the file."""
    from benchmarks.report import cell_of

    for row in results.read(path)["rows"]:
        assert row["status"] != "ok" or row["bytes"] == ops.bytes_moved(cell_of(row))
