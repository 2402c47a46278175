# SPDX-License-Identifier: Apache-2.0
"""Builds: the programs without torch first, then the extension, beside which these can run already."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gpu.run import TOOLS, WORK, NotRun, Run, found

# A dry run compiles one type: half a minute on two cores.
EMULATED_ELEMENT = "bfloat16"
EXTENSION = ("setup.py", "-q", "build_ext", "--inplace")


def native(run: Run) -> dict[str, Any]:
    """The kernels, and the programs that call them; and where wheels were brought along, these."""
    commands = []
    if run.wheels is not None:
        wheels = sorted(run.wheels.glob("*.whl"))
        if not wheels:
            raise NotRun(f"no wheels in {run.wheels}")
        pip = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade")
        command = run.python(*pip, "--target", WORK / "site", *wheels)
        if run.dry:
            run.would("wheels", command)
        else:
            commands.append(run.run("wheels", command, 60))
            as_site(WORK / "site")
    command = run.python("-m", "gpu.native", "--into", run.programs)
    if run.dry:
        run.would("programs", command)
        command += ["--emulate", "--element", EMULATED_ELEMENT]
    commands.append(run.run("programs", command, **TOOLS))
    if not run.dry:
        # The other cores work for the programs that compare on the host.
        jobs = str(max(1, run.jobs * 3 // 4))
        run.started["extension"] = run.start("extension", run.python(*EXTENSION), MAX_JOBS=jobs)
    return found(commands)


def as_site(folder: Path) -> None:
    """Have .pth files of the folder read, which Python does not do where PYTHONPATH names it."""
    text = "import os, site\nsite.addsitedir(os.path.dirname(os.path.abspath(__file__)))\n"
    (folder / "sitecustomize.py").write_text(text)


def with_nvcc(run: Run) -> dict[str, Any]:
    """In a dry run: that nvcc compiles the programs."""
    import cuda_build

    from gpu.native import OF_NO_ARCHITECTURE, PROGRAMS

    toolkit, _ = cuda_build.find_toolkit(os.environ)
    if toolkit is None:
        raise NotRun("no nvcc")
    commands = []
    for name in sorted({name for names in PROGRAMS.values() for name in names}):
        flags = (
            "-std=c++17",
            "-DSOFTKERN_ELEMENT=float",
            OF_NO_ARCHITECTURE,
            "-I",
            "csrc/cuda",
            "-I",
            "tools",
            "-o",
            os.devnull,
        )
        commands.append(run.start(Path(name).stem, [toolkit.nvcc, *flags, "-c", name]))
    return found([run.finish(command) for command in commands])


def extension(run: Run) -> dict[str, Any]:
    """softkern for the torch that is there."""
    command = run.python(*EXTENSION)
    if run.dry:
        run.would("extension", command)
        return with_nvcc(run)
    commands = [run.finish(run.started.pop("extension", None) or run.start("extension", command))]
    if commands[0].ok:
        commands.append(run.run("imported", run.python("-m", "softkern.info"), 60))
    return found(commands, information=commands[-1].written if commands[-1].ok else "")
