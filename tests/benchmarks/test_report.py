# SPDX-License-Identifier: Apache-2.0
"""Views of the benchmarks' results: tables, CSV, plots, blocks of pages."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from benchmark_rows import MS, REASON, refused_row, results_of, row, torch_row
from rich.console import Console

from benchmarks import results as results_file
from benchmarks.report import duration, plots, readme, table, table_csv


def printed(results: dict[str, Any], colours: bool = False) -> str:
    console = Console(width=120, color_system="standard" if colours else None, force_terminal=colours)
    with console.capture() as capture:
        table.render(results, console)
    return capture.get()


# The table


def test_table_has_the_numbers_within_120_columns() -> None:
    fields = {"op": "cross_entropy", "option": "weight+ignore_index", "regime": "preallocated"}
    fields |= {"shape": [64, 1000, 196], "dim": 1, "peak_bytes": 3 * 64 * 1000 * 196 * 4}
    text = printed(results_of(torch_row(**fields), row("softkern:portable", 123 * MS, **fields)))
    assert max(map(len, text.splitlines())) <= 120
    assert "cross_entropy, no-grad, float32, weight+ignore_index" in text
    first, second = (line for line in text.splitlines() if "ms " in line)
    assert first.split()[:4] == ["64x1000x196", "dim", "1", "preallocated"]
    assert first.split()[4:10] == ["2", "torch", "2.00", "ms", "1.99-2.01", "1.00"]
    assert second.split()[:5] == ["softkern:portable", "123", "ms", "122-124", "0.02"]
    assert second.split()[5:] == ["0.82", "82", "%", "2.50", "144", "3.00", "7"]


def masked_rows(times: float = 3.21, **fields: Any) -> list[dict[str, Any]]:
    """torch, and softkern, twice as fast, though it takes so many times as long as with plain logits."""
    made = {"inputs": "half-inf", "edge": True, "main": False} | fields
    return [torch_row(times_plain=1.04, **made), row(times_plain=times, **made)]


def test_table_has_times_plain_where_logits_are_not_plain() -> None:
    fields = {"regime": "preallocated", "shape": [64, 1000, 196], "dim": 1, "option": "row-weights"}
    text = printed(results_of(torch_row(), row(), *masked_rows(**fields)))
    assert max(map(len, text.splitlines())) <= 120
    plain, masked = text.split("softmax, no-grad, float32, row-weights, half-inf")
    assert "plain" not in plain and "plain" in masked
    lines = [line for line in masked.splitlines() if "ms " in line]
    assert [line.split("-")[-1].split()[1:4] for line in lines] == [
        ["1.00", "1.04", "50.2"],
        ["2.00", "3.21", "100"],
    ]
    coloured = printed(results_of(*masked_rows()), colours=True)
    assert "\x1b[31m 3.21" in coloured and "\x1b[31m 1.04" not in coloured


def test_table_names_the_logits_of_who_is_refused() -> None:
    text = printed(results_of(refused_row(inputs="half-inf")))
    assert "4096x1000 half-inf, default, 2 thr, jax: refused" in " ".join(text.split())


def test_table_colours_gains_and_losses() -> None:
    text = printed(results_of(torch_row(), row("softkern", 1 * MS), row("jax", 4 * MS)), colours=True)
    assert "\x1b[32m 2.00" in text and "\x1b[31m 0.50" in text


def test_table_names_reasons_warnings_and_what_is_missing() -> None:
    text = printed(results_of(refused_row(), interrupted=True, warnings=["load is [high]"]))
    flowing = " ".join(text.split())
    assert f"4096x1000, default, 2 thr, jax: refused: {REASON}" in flowing
    assert "warning: load is [high]" in text and "interrupted" in text
    assert "numpy: does not compute float16 (4 cells)" in text
    assert "liger: no GPU on this machine" in text
    assert "interrupted" not in printed(results_of())


def test_table_leaves_out_what_was_not_measured() -> None:
    job = row(op="zoo", pass_name="epoch", shape=[], bytes=0, gbps=0.0, copy_percent=None)
    job |= {"peak_bytes": None, "error": {}, "faults": None}
    line = next(line for line in printed(results_of(job)).splitlines() if "ms " in line)
    assert line.split() == ["default", "2", "softkern", "1.00", "ms", "0.99-1.01", "2.00"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(9.996e-6, "10.0 us"), (0.9996e-3, "1.00 ms"), (0.0123, "12.3 ms"), (0.9999, "1.00 s"), (61, "61.0 s")],
)
def test_durations_have_three_digits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# CSV


def test_csv_has_every_row_and_number(tmp_path: Path) -> None:
    results = results_of(torch_row(extra=5), refused_row())
    table_csv.write(results, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        measured, refused = csv.DictReader(file)
    source = results["rows"][0]
    assert [float(measured[name]) for name in ("median", "q20", "ratio", "gbps", "peak_bytes", "extra")] == [
        source[name] for name in ("median", "q20", "ratio", "gbps", "peak_bytes", "extra")
    ]
    assert (measured["shape"], measured["error_output"], measured["error_gradient"]) == (
        "4096x1000",
        "1.5",
        "2.5",
    )
    assert "samples" not in measured
    assert (refused["status"], refused["reason"], refused["median"]) == ("refused", REASON, "")


def test_csv_has_kinds_of_logits_and_times_plain_after_the_rest(tmp_path: Path) -> None:
    older = {k: v for k, v in torch_row().items() if k not in ("inputs", "edge")}
    table_csv.write(results_of(older), tmp_path / "older.csv")
    table_csv.write(results_of(torch_row(), *masked_rows()), tmp_path / "r.csv")
    older_header, header = (
        (tmp_path / name).read_text().splitlines()[0].split(",") for name in ("older.csv", "r.csv")
    )
    assert header == [*older_header, "inputs", "edge", "times_plain"]
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["times_plain"] for r in rows] == ["", "1.04", "3.21"]
    assert [r["inputs"] for r in rows] == ["", "half-inf", "half-inf"]


# README


def test_block_has_the_edges_beside_the_same_with_plain_logits() -> None:
    graph = {"op": "cross_entropy", "pass_name": "create-graph", "edge": True, "main": False}
    rows = [torch_row(), row(), *masked_rows(), torch_row(**graph), row(**graph)]
    rows += [*masked_rows(threads=1), row(main=False, shape=[7, 7])]
    text = readme.block(results_of(*rows), "r.json")
    main, edges = text.split("times plain, softkern")
    assert main.count("| `") == 1
    lines = [line for line in edges.splitlines() if line.startswith("| `")]
    assert lines == [
        f"| `{cell} | 2.00 ms | 1.00 ms | **2.00** | {times} | 1.00 | 1.00 |"
        for cell, times in (
            ("cross_entropy` create-graph float32 4096x1000", " | "),
            ("softmax` no-grad float32 4096x1000 half-inf", "1.04 | 3.21"),
        )
    ]
    assert "with plain logits (2 of 2 measurements; times plain):" in text
    assert "- `softmax` float32 4096x1000 half-inf: no-grad 3.21\n" in text
    short = readme.block(results_of(*rows), "r.json", short=True)
    assert "times plain, softkern" not in short and "2 of 2 measurements; times plain" in short


def test_block_of_edges_alone_has_no_other_table() -> None:
    text = readme.block(results_of(*masked_rows(1.1)), "r.json")
    assert text.count("|---|") == 1 and "% of copy speed" not in text
    assert "1.1 times as long as with plain logits: none of 1 measurements." in text
    slow = [row(time=4 * MS, inputs="causal"), row(time=5 * MS)]
    slower = readme.block(results_of(*masked_rows(), *slow), "r.json")
    assert "- `softmax` float32 4096x1000 causal: no-grad 0.50\n" in slower
    assert "- `softmax` float32 4096x1000: no-grad 0.40\n" in slower


def test_older_results_have_plain_logits() -> None:
    rows = [torch_row(), row(time=4 * MS)]
    older = [{k: v for k, v in made.items() if k not in ("inputs", "edge")} for made in rows]
    assert readme.block(results_of(*older), "r.json") == readme.block(results_of(*rows), "r.json")
    assert printed(results_of(*older)) == printed(results_of(*rows))
    assert "plain" not in readme.block(results_of(*rows), "r.json")


def test_block_has_the_main_cells_as_users_run_them() -> None:
    rows = [torch_row(peak_bytes=3 * 4096 * 4000), row(), row("jax", 4 * MS), row("softkern:avx2", 0.5 * MS)]
    rows += [
        row(time=1.5 * MS, threads=1),
        row(time=1.5 * MS, regime="hugepages"),
        row(main=False, shape=[1200, 10]),
    ]
    rows += [row(dtype="float64"), row(pass_name="backward")]
    text = readme.block(results_of(*rows), "benchmarks/results/r.json")
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    cell = "`softmax` no-grad float32 4096x1000"
    assert lines == [f"| {cell} | 2.00 ms | 1.00 ms | **2.00** | 82 | 3.00 | 1.00 | jax 0.50 |"]
    assert "slower than torch: none of 6 measurements" in text
    for part in ("Some CPU, 2 threads, torch 2.13.0, softkern 0.1.0 (avx512)", "huge pages on madvise"):
        assert part in text
    assert "2026-01-02, commit abc1234." in text and "(benchmarks/results/r.json)" in text


def test_block_lists_every_cell_in_which_softkern_loses() -> None:
    slow = {"shape": [1, 128256], "main": False}
    rows = [torch_row(), row(), row(time=4 * MS, **slow), row(time=2.5 * MS, regime="hugepages", **slow)]
    rows += [row(time=3 * MS, pass_name="backward", **slow), row(time=2.001 * MS, threads=1, **slow)]
    for short in (False, True):
        text = readme.block(results_of(*rows), "r.json", short)
        assert "slower than torch (3 of 5 measurements" in text
        assert "- `softmax` float32 1x128256: no-grad 0.50 to 0.80, backward 0.67\n" in text


def test_the_short_block_has_one_pass_of_two_ops_and_whole_jobs() -> None:
    rows = [
        torch_row(op=op, pass_name=pass_name) | {"provider": provider}
        for op in ("softmax", "log_softmax", "cross_entropy")
        for pass_name in ("no-grad", "forward+backward")
        for provider in ("torch", "softkern")
    ]
    rows += [
        torch_row(op="zoo", pass_name="epoch", shape=[]) | {"provider": p} for p in ("torch", "softkern")
    ]

    def cells(short: bool) -> list[str]:
        text = readme.block(results_of(*rows), "r.json", short)
        return [
            line.split("|")[1].split(" float32")[0].strip() for line in text.splitlines() if "| `" in line
        ]

    assert len(cells(False)) == 7
    assert cells(True) == ["`cross_entropy` forward+backward", "`softmax` no-grad", "`zoo` epoch"]


def test_block_names_failures_and_changed_trees() -> None:
    failed = row(status="failed", reason="killed")
    results = results_of(torch_row(), failed)
    results["environment"]["dirty"] = "yes"
    text = readme.block(results, "r.json")
    assert "no time:\n\n- `softmax` no-grad float32 4096x1000 (default, 2 threads): killed" in text
    assert "commit abc1234 with changes" in text


def test_cells_without_torch_have_no_ratio() -> None:
    alone = row(time=3 * MS, baseline="softkern", ratio=1.0)
    failed = row("torch", status="failed", reason="killed")
    text = readme.block(results_of(failed, alone, row("jax", baseline="softkern", ratio=0.9)), "r.json")
    assert "| failed | 3.00 ms |  | 82 |  | 1.00 |  |" in text
    assert "none of 0 measurements" in text


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "README.md"
    path.write_text("head\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\ntail\n")
    return path


def test_update_writes_what_current_recognises(page: Path) -> None:
    source = page.parent / "benchmarks" / "r.json"
    results_file.write(results_of(torch_row(), row()), source)
    readme.update(page, source)
    text = page.read_text()
    assert text.startswith("head\n<!-- benchmarks: begin benchmarks/r.json -->\nMedian times")
    assert text.endswith("<!-- benchmarks: end -->\ntail\n") and "old" not in text
    assert readme.current(page)
    readme.update(page, source)
    assert page.read_text() == text


def test_a_page_may_have_blocks_of_several_files(page: Path) -> None:
    page.write_text(page.read_text() * 2)
    cpu, cuda, others = (
        page.parent / "cpu.json",
        page.parent / "cuda.json",
        page.parent / "other" / "cuda.json",
    )
    for source, time in ((cpu, 1 * MS), (cuda, 0.5 * MS), (others, 0.25 * MS)):
        results_file.write(results_of(torch_row(), row(time=time)), source)
        readme.update(page, source)
    text = page.read_text()
    assert [text.count(f"begin {name} -->") for name in ("cpu.json", "cuda.json", "other/cuda.json")] == [
        1,
        0,
        1,
    ]
    assert text.index("**2.00**") < text.index("**8.00**") and "**4.00**" not in text
    assert readme.current(page)
    page.write_text(text.replace("**8.00**", "**9.00**"))
    assert not readme.current(page)


def test_the_caption_of_a_device_names_it_and_its_backend() -> None:
    peer = row("liger", time=4 * MS) | {"how": "not captured in a CUDA graph: an error"}
    results = results_of(torch_row(), row(), peer)
    results["environment"] |= {"device": "Some GPU, CUDA 13.0", "active on cuda": "cuda"}
    text = readme.block(results, "r.json")
    assert "Some GPU, CUDA 13.0, torch 2.13.0, softkern 0.1.0 (cuda), short calls replayed from CUDA" in text
    assert "Some CPU" not in text and "huge pages" not in text
    assert "| liger 0.50 with its launches |" in text
    # The memory of what earlier runs captured was there before its peak was measured.
    captured = readme.block(results_of(torch_row(), row() | {"how": "CUDA graph"}), "r.json")
    assert "| 82 | 1.00 |  |  |" in captured
    results = results_of(torch_row(), row() | {"how": "replayed from a CUDA graph"})
    results["environment"] |= {"device": "Some GPU, CUDA 13.0", "active on cuda": "cuda"}
    replayed = readme.block(results, "r.json")
    assert "| 82 | 1.00 | 1.00 |  |" in replayed and " (cuda), calls replayed from CUDA" in replayed


@pytest.mark.parametrize("where", ["json", "page"])
def test_a_block_that_differs_from_its_json_is_not_current(page: Path, where: str) -> None:
    source = page.parent / "r.json"
    results_file.write(results_of(torch_row(), row()), source)
    readme.update(page, source)
    if where == "json":
        results_file.write(results_of(torch_row(), row(time=1.5 * MS)), source)
    else:
        page.write_text(page.read_text().replace("**2.00**", "**3.00**"))
    assert not readme.current(page)


def test_missing_markers_are_an_error(tmp_path: Path) -> None:
    page, source = tmp_path / "README.md", tmp_path / "r.json"
    page.write_text("<!-- benchmarks: begin r.json -->\nno end\n")
    results_file.write(results_of(), source)
    with pytest.raises(ValueError, match=r"README\.md"):
        readme.update(page, source)
    with pytest.raises(ValueError, match=r"README\.md"):
        readme.current(page)


def test_the_readme_is_about_torch_only(page: Path) -> None:
    source = page.parent / "r.json"
    results_file.write(results_of(row(baseline="jax")), source)
    with pytest.raises(ValueError, match="measured against jax"):
        readme.update(page, source)


# Plots


def drawable() -> dict[str, Any]:
    other = {"pass_name": "forward+backward", "shape": [65536, 10], "residency": "cache"}
    other |= {"copy_gbps": None, "copy_percent": None, "peak_bytes": None}
    job = {"op": "zoo", "pass_name": "epoch", "shape": [], "bytes": 0, "gbps": 0.0, "error": {"loss": 1e-7}}
    rows = [make(**fields) for fields in ({}, other, job) for make in (torch_row, row)]
    return results_of(*rows, refused_row(), row("numpy", 40 * MS, error={"output": 0.0}))


def test_plots_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = (plots.write(drawable(), tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == ["speedup.svg", "bandwidth.svg", "error.svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    speedup = first[0].read_text()
    for text in ("softmax, no-grad", "whole jobs", "zoo, epoch", "65536x10", "numpy", "2.00"):
        assert f">{text}</text>" in speedup
    assert "jax" not in speedup


def test_speedups_are_all_against_the_same_provider(tmp_path: Path) -> None:
    """Where torch fails, the next provider is the measure: its cells have no place beside the others."""
    results = drawable()
    results["rows"] += [
        row(shape=[7, 77], baseline="softkern"),
        row("numpy", shape=[7, 77], baseline="softkern"),
    ]
    speedup = plots.write(results, tmp_path)[0].read_text()
    assert ">4096x1000<" in speedup and "7x77" not in speedup


def test_plots_name_the_kind_of_logits_and_keep_it_out_of_the_bandwidth(tmp_path: Path) -> None:
    plain, *_ = plots.write(drawable(), tmp_path / "a")
    results = drawable()
    results["rows"] += masked_rows(gbps=1e4)
    masked, *_ = plots.write(results, tmp_path / "b")
    assert ">4096x1000 half-inf<" in masked.read_text() and "half-inf" not in plain.read_text()
    name = "bandwidth.svg"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_plots_with_nothing_to_draw_are_left_out(tmp_path: Path) -> None:
    assert plots.write(results_of(), tmp_path) == []
    assert plots.write(results_of(refused_row()), tmp_path) == []
    only_error = plots.write(results_of(torch_row(gbps=0.0)), tmp_path)
    assert only_error == [tmp_path / "error.svg"] == list(tmp_path.iterdir())
