# SPDX-License-Identifier: Apache-2.0
"""The results folder: a JSON for each step and summary.json, which is written anew after each of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SCHEMA = 1
STATUSES = ("ok", "failed", "timed out", "not run", "would run")


class Record:
    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.json"):  # of an earlier run
            old.unlink()
        self.summary: dict[str, Any] = {"schema": SCHEMA, **about, "finished": False, "steps": []}
        self._write("summary", self.summary)

    def add(self, name: str, found: dict[str, Any]) -> None:
        """`found`: status, reason, seconds, summary (a few words), and all that the step has found."""
        assert found["status"] in STATUSES, found["status"]
        self._write(name, {"schema": SCHEMA, "step": name, "about": self.about(), **found})
        short = {key: found[key] for key in ("status", "reason", "seconds", "summary")}
        self.summary["steps"].append({"step": name, **short, "file": f"{name}.json"})
        self._write("summary", self.summary)

    def about(self) -> dict[str, Any]:
        return {k: v for k, v in self.summary.items() if k not in ("schema", "steps", "finished")}

    def finish(self, seconds: float) -> None:
        self.summary.update(finished=True, seconds=round(seconds, 1))
        self._write("summary", self.summary)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        path = self.folder / f"{name}.json"
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(beside, path)  # so that no reader sees half of it


def as_text(summary: dict[str, Any]) -> str:
    """The summary as lines."""
    lines = [f"{summary['device']}, commit {summary['commit']}"]
    for step in summary["steps"]:
        text = "; ".join(part for part in (step["reason"], step["summary"]) if part)
        lines.append(f"{step['step']:<10} {step['status']:<9} {step['seconds']:6.1f} s  {text}")
    return "\n".join(lines)
