"""Copies what is native into the package, so that an installed package stands alone."""

import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build"
LIBRARY = BUILD / "lib" / "libpccheck.so"
PROGRAM = BUILD / "bin" / "pccheck"


class BuildWithNativeParts(build_py):
    """Adds the library and the program where `make lib tools` has built them."""

    def run(self) -> None:
        super().run()
        package = Path(self.build_lib) / "pccheck"
        for built, place in ((LIBRARY, LIBRARY.name), (PROGRAM, "bin/pccheck")):
            if built.exists():
                target = package / place
                target.parent.mkdir(exist_ok=True)
                # With its mode: the program has to stay executable.
                shutil.copy(built.resolve(), target)
            else:
                self.warn(f"{built} is not built: the package will look for an installed one")


class BinaryDistribution(Distribution):
    """Marks the wheel as specific to this kind of machine when it carries native parts."""

    def has_ext_modules(self) -> bool:
        return LIBRARY.exists() or PROGRAM.exists()


class WheelForEveryPython(bdist_wheel):
    """Says that any Python 3 will do: nothing that is native knows anything of it."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return ("py3", "none", platform)


setup(
    cmdclass={"build_py": BuildWithNativeParts, "bdist_wheel": WheelForEveryPython},
    distclass=BinaryDistribution,
)
