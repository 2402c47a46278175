# SPDX-License-Identifier: Apache-2.0
"""A clone may have any path and any owner; tests that can't run there are skipped."""

from __future__ import annotations

import tempfile

import needs
import pytest
import torch


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything where inductor can use it."""
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setattr(torch, "__path__", ["/venv/torch"])
    monkeypatch.setattr(needs.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/cache")


@pytest.mark.usefixtures("plain")
def test_inductor_is_tested_where_it_can_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    assert needs.why_no_inductor() == ""
    monkeypatch.setattr(torch, "__path__", ["/\u00fcn\u00efcode/torch"])
    assert needs.why_no_inductor() == ""
    monkeypatch.setattr(needs.shutil, "which", lambda name: None)
    assert needs.why_no_inductor() == "inductor needs g++"


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("where", ("torch", "temporary", "cache", "user"))
def test_and_not_where_a_space_ends_a_path_for_it(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "torch":
        monkeypatch.setattr(torch, "__path__", ["/a b/torch"])
    elif where == "temporary":
        monkeypatch.setattr(tempfile, "tempdir", "/a b")
    elif where == "cache":
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/a b/cache")
    else:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        monkeypatch.setenv("LOGNAME", "a b")
    assert "a b" in needs.why_no_inductor()
