"""Copies what is native into the package, so that an installed package stands alone."""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build"
LIBRARY = BUILD / "lib" / "libpccheck.so"
PROGRAM = BUILD / "bin" / "pccheck"


#: pyproject.toml takes license files from here, because they must be below it.
LICENSES = HERE / "build" / "licenses"
#: In the wheel, or linked into what is in it. Each is of the package of its name.
SYSTEM_LIBRARIES = ("libxxhash0", "libzstd1", "liburing-dev")


def gather_licenses() -> None:
    """Copies our license, and those of native parts as far as their packages ship them."""
    found = {"LICENSE": ROOT / "LICENSE"}
    if LIBRARY.exists() or PROGRAM.exists():
        for name in SYSTEM_LIBRARIES:
            found[name] = Path("/usr/share/doc") / name / "copyright"
        for path in ROOT.glob(".build-c/checkouts/*/LICENSE.txt"):
            found[path.parent.name] = path
        swift = shutil.which(os.environ.get("SWIFT", "swift"))
        if swift is not None:
            found["swift"] = Path(swift).resolve().parents[1] / "share/swift/LICENSE.txt"
    shutil.rmtree(LICENSES, ignore_errors=True)
    LICENSES.mkdir(parents=True)
    for name, path in found.items():
        if path.is_file():
            shutil.copyfile(path, LICENSES / name)


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


gather_licenses()
setup(
    cmdclass={"build_py": BuildWithNativeParts, "bdist_wheel": WheelForEveryPython},
    distclass=BinaryDistribution,
)
