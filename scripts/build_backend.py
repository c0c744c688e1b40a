"""Build aiocp: setuptools' own PEP 517 backend, told what would otherwise take a setup.py."""

import subprocess
import tempfile

import setuptools
from setuptools.build_meta import _BuildMetaBackend
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

PROBE = "#include <Python.h>\n#include <libaio.h>\nint probe(void) { return io_destroy(0); }\n"
NEEDED = (
    "aiocp: building needs a C compiler, Python.h and libaio.h; install on "
    "Debian or Ubuntu: libaio-dev gcc python3-dev, "
    "Fedora: libaio-devel gcc python3-devel, "
    "Arch: libaio gcc, "
    "Alpine: libaio-dev gcc musl-dev python3-dev linux-headers"
)


class BuildExt(build_ext):
    def build_extensions(self) -> None:
        """Say in one line what is missing, before the compiler says it in thirty."""
        with tempfile.TemporaryDirectory() as directory:
            command = [
                *self.compiler.linker_so,
                *("-fPIC", "-o", f"{directory}/probe.so"),
                *(f"-I{path}" for path in self.include_dirs),
                *(f"-L{path}" for path in self.library_dirs),
                *("-x", "c", "-", "-laio"),
            ]
            try:
                subprocess.run(command, input=PROBE, check=True, capture_output=True, text=True)
            except OSError as error:
                raise SystemExit(f"{NEEDED} ({error})") from None
            except subprocess.CalledProcessError as error:
                lines = error.stderr.splitlines()
                reason = next((line for line in lines if ": " in line), error)
                raise SystemExit(f"{NEEDED} ({reason})") from None
        super().build_extensions()


class Sdist(sdist):
    def make_distribution(self) -> None:
        """Add what a MANIFEST.in would: the tests and the scripts."""
        self.filelist.graft("tests")
        self.filelist.graft("scripts")
        self.filelist.global_exclude("*.py[co]")
        super().make_distribution()


class Backend(_BuildMetaBackend):
    def run_setup(self, setup_script: str = "setup.py") -> None:
        setuptools.setup(
            cffi_modules=[
                f"aiocp/_{name}_build.py:ffibuilder" for name in ("libaio", "linux", "batch")
            ],
            cmdclass={"build_ext": BuildExt, "sdist": Sdist},
            options={"bdist_wheel": {"py_limited_api": "cp311"}},
        )


backend = Backend()
build_sdist = backend.build_sdist
build_wheel = backend.build_wheel
build_editable = backend.build_editable
prepare_metadata_for_build_wheel = backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = backend.prepare_metadata_for_build_editable
