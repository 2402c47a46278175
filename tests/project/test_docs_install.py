# SPDX-License-Identifier: Apache-2.0
"""Runs the example of docs/install.md."""

import doctest

from places import DOCS

PAGE = DOCS / "install.md"


def test_the_example_prints_what_the_page_says():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert (result.attempted, result.failed) == (4, 0)
