"""Native part of the package: everything else is in pyproject.toml."""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

_spec = importlib.util.spec_from_file_location("native_build", Path("csrc/build.py").resolve())
native_build = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = native_build  # dataclasses look their module up
_spec.loader.exec_module(native_build)


class BuildNative(build_ext):
    """Hand the one extension to ninja."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        native_build.build(native_build.find_library(output))

    def get_ext_filename(self, fullname: str) -> str:
        # No Python API in it, hence no Python version in its name.
        return fullname.replace(".", "/") + ".so"


class PlatformWheel(bdist_wheel):
    """Tag py3-none-<platform>: native code, but any Python."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def run(self) -> None:
        # What an earlier build left there would be packed, also after its source is gone.
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


# pip asks for the metadata first. Stop there if the build cannot work: later, pip would already
# have fetched torch and all of CUDA as a dependency of something that then fails to build.
if {"dist_info", "bdist_wheel", "editable_wheel", "build_ext"} & set(sys.argv):
    try:
        native_build.find_library()
    except native_build.BuildError as problem:
        sys.exit(f"\nerror: {problem}\n")

setup(
    ext_modules=[Extension("hybrid_kernels._C", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
