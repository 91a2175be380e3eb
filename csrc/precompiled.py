"""Precompiled headers: what most files of a kind begin with, read once for all of them.

immintrin.h alone takes a quarter of a second, as long as a small kernel does. g++ uses such a
header only where the flags are those it was made with, so every instruction set has its own.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

TORCH = ("torch/csrc/stable/library.h", "torch/csrc/stable/ops.h", "torch/csrc/stable/tensor.h")
TORCH += ("optional", "sstream", "string", "vector")
INTRINSICS = ("immintrin.h",)


def write_if_changed(path: Path, text: str) -> None:
    """An unchanged file keeps its time, so that nothing is rebuilt for it."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def is_helpful(cxx: str) -> bool:
    """Whether the compiler is a plain g++: ccache would no longer know what it has compiled."""
    program = cxx.split()[0]
    if "ccache" in Path(shutil.which(program) or program).resolve().name:
        return False
    version = subprocess.run([*cxx.split(), "--version"], capture_output=True, text=True).stdout
    return "Free Software Foundation" in version


class Headers:
    """The precompiled headers of a build folder, each written when it is first asked for."""

    def __init__(self, ninja: Any, build_dir: Path, cxx: str) -> None:
        self._ninja, self._build_dir, self._helpful = ninja, build_dir, is_helpful(cxx)
        self._written: set[str] = set()

    def include(
        self, name: str, headers: tuple[str, ...], rule: str, flags: dict[str, str]
    ) -> dict[str, str]:
        """Arguments of `ninja.build` for a file of this rule that begins with these headers.

        `flags` are the rule's variables that matter to the headers; `name` stands for them.
        """
        if not self._helpful:
            return {}
        path = f"precompiled/{name}.h"
        if path not in self._written:
            self._written.add(path)
            write_if_changed(
                self._build_dir / path, "".join(f"#include <{header}>\n" for header in headers)
            )
            variables = flags | {"header": "-x c++-header"}
            self._ninja.build(f"{path}.gch", rule, path, variables=variables)
        return {"header": f"-include {path}", "implicit": f"{path}.gch"}
