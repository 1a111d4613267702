"""Copies the native library into the package, so that an installed package stands alone."""

import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
LIBRARY = HERE.parents[1] / "build" / "lib" / "libpccheck.so"


class BuildWithLibrary(build_py):
    """Adds libpccheck.so where `make lib` has built it."""

    def run(self) -> None:
        super().run()
        if LIBRARY.exists():
            shutil.copyfile(LIBRARY.resolve(), Path(self.build_lib) / "pccheck" / LIBRARY.name)
        else:
            self.warn(f"{LIBRARY} is not built: the package will look for an installed library")


class BinaryDistribution(Distribution):
    """Marks the wheel as specific to this kind of machine when it carries the library."""

    def has_ext_modules(self) -> bool:
        return LIBRARY.exists()


class WheelForEveryPython(bdist_wheel):
    """Says that any Python 3 will do: the library is loaded by ctypes and knows nothing of it."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return ("py3", "none", platform)


setup(
    cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": WheelForEveryPython},
    distclass=BinaryDistribution,
)
