"""Promises of the packaging: what is in the archives, and that they install and run elsewhere."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOP_LEVEL = {"LICENSE", "README.md", "aiocp", "pyproject.toml", "scripts", "tests"}


def run(*command: str | Path, **environment: str) -> str:
    """Run a command outside the checkout; what it printed."""
    process = subprocess.run(
        command,
        cwd="/",
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scripts/wheel builds: the sdist and, from it, the manylinux wheel."""
    directory = tmp_path_factory.mktemp("dist")
    run(ROOT / "scripts/wheel", directory)
    return directory


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    (archive,) = dist.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (archive,) = dist.glob("*.whl")
    return archive


@pytest.fixture
def unpacked(sdist: Path, tmp_path: Path) -> Path:
    run("tar", "-xzf", sdist, "-C", tmp_path)
    return tmp_path / sdist.name.removesuffix(".tar.gz")


@pytest.fixture
def install(tmp_path: Path) -> Callable[[Path], Path]:
    """Install an archive with what it depends on in a new environment; its bin directory."""
    environment = tmp_path / "venv"

    def pip_install(archive: Path) -> Path:
        run(sys.executable, "-m", "venv", "--without-pip", environment)
        python = environment / "bin/python"
        run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", archive)
        return environment / "bin"

    return pip_install


def copies(bin_directory: Path, directory: Path, *wrapper: str | Path) -> bool:
    """Whether the `aiocp` installed there copies a file through libaio."""
    source, destination = directory / "source", directory / "destination"
    source.write_bytes(os.urandom(1_000_001))
    classic = "from aiocp import libaio; libaio.io_destroy(libaio.io_setup(1))"
    run(*wrapper, bin_directory / "python", "-c", classic)
    run(*wrapper, bin_directory / "aiocp", source, destination)
    return subprocess.run(["cmp", source, destination]).returncode == 0


def test_the_top_level_holds_nothing_else() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    names = {Path(line).parts[0] for line in listing.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} == TOP_LEVEL


def test_the_wheel_is_abi3_and_carries_both_extensions_and_libaio(wheel: Path) -> None:
    assert "-cp311-abi3-manylinux_" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert {"aiocp/_libaio.abi3.so", "aiocp/_linux.abi3.so", "aiocp/py.typed"} <= set(names)
    assert [name for name in names if name.startswith("aiocp.libs/libaio-")]
    assert [name for name in names if name.endswith(".data/data/share/man/man1/aiocp.1")]
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]


def test_the_sdist_holds_what_the_checkout_holds(unpacked: Path) -> None:
    made_by_setuptools = {"PKG-INFO", "aiocp.egg-info", "setup.cfg"}
    assert {path.name for path in unpacked.iterdir()} == TOP_LEVEL | made_by_setuptools
    for name in ("tests/conftest.py", "scripts/build_backend.py", "scripts/test"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes()
        assert os.access(unpacked / name, os.X_OK) == os.access(ROOT / name, os.X_OK)


def test_the_sdist_installs_in_a_clean_environment(
    sdist: Path, install: Callable[[Path], Path], tmp_path: Path
) -> None:
    assert copies(install(sdist), tmp_path)


@pytest.mark.alone
@pytest.mark.root
def test_the_wheel_works_where_libaio_is_not(
    wheel: Path, install: Callable[[Path], Path], tmp_path: Path
) -> None:
    """In a mount namespace whose libaio, header and library, is an empty file."""
    cached = run("/sbin/ldconfig", "-p").splitlines()
    libraries = [line.split(" => ")[1] for line in cached if line.strip().startswith("libaio.so")]
    hide = " && ".join(
        f"mount --bind /dev/null {path}" for path in [*libraries, "/usr/include/libaio.h"]
    )
    # slave: what others unmount meanwhile does not stay mounted here
    namespace = ("unshare", "--mount", "--propagation=slave")
    without_libaio = (*namespace, "sh", "-c", f'{hide} && exec "$@"', "sh")
    system = (sys.executable, "-c", "import ctypes; ctypes.CDLL('libaio.so.1')")
    with pytest.raises(AssertionError, match=r"libaio\.so\.1: file too short"):
        run(*without_libaio, *system)

    assert copies(install(wheel), tmp_path, *without_libaio)


@pytest.mark.parametrize("missing", ["compiler", "Python.h", "libaio.h", "libaio.so"])
def test_a_build_says_in_one_line_what_to_install(
    missing: str, unpacked: Path, tmp_path: Path
) -> None:
    absent = tmp_path / "absent"
    absent.mkdir()
    for header in ("Python.h", "libaio.h"):
        if header == missing:
            (absent / header).write_text(f"#include <absent/{header}>\n")
    (absent / "libaio.so").write_text("INPUT(absent/libaio.so)\n")
    environment = {
        "compiler": {"CC": "/absent/compiler"},
        "libaio.so": {"LDFLAGS": f"-L{absent}"},
    }.get(missing, {"CFLAGS": f"-I{absent}"})
    build = ("install", "--no-build-isolation", "--no-deps", "--target", absent, unpacked)
    with pytest.raises(AssertionError) as failure:
        run(sys.executable, "-m", "pip", *build, **environment)
    output = str(failure.value)
    (message,) = {line for line in output.splitlines() if "building needs" in line}
    assert "Traceback" not in output
    for part in (
        f"absent/{missing}",
        "Debian or Ubuntu: libaio-dev gcc python3-dev",
        "Fedora: libaio-devel gcc python3-devel",
        "Arch: libaio gcc",
        "Alpine: libaio-dev gcc musl-dev python3-dev linux-headers",
    ):
        assert part in message
