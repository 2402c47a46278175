# SPDX-License-Identifier: Apache-2.0
from benchmarks.cli import main

raise SystemExit(main())
