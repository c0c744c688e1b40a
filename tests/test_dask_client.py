"""--dask: how a scheduler is found, what is said if there is none, and that nobody else speaks."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from aiocp.exit_status import Exit
from aiocp.result import Worker
from trees import snapshot

COMMAND = [sys.executable, "-m", "aiocp"]
NOBODY = "127.0.0.1:1"
TLS = "DASK_DISTRIBUTED__COMM__TLS__"
TIMEOUT = "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT"

# A scheduler with workers of one thread each, in one process; ends when stdin does, or we do. Its
# Dask is of another version than ours, of which a client would warn.
CLUSTER = """
import asyncio, sys
from importlib import metadata

version = metadata.version
metadata.version = lambda package: version(package) if package == "aiocp" else "1.0"
from distributed import Scheduler, Worker

async def main(protocol, workers):
    quiet = {"dashboard": False, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    async with Scheduler(protocol=protocol, port=0, **quiet) as scheduler:
        for _ in range(int(workers)):
            await Worker(scheduler.address, nthreads=1, **quiet)
        print(scheduler.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main(*sys.argv[1:]))
"""

# Asks an executor of each address for something; says what came of it, an address a line.
ASK = """
import os, sys
from aiocp.dask_client import connect
from aiocp.options import UsageError

for address in sys.argv[1:]:
    try:
        with connect(address) as executor:
            print(executor.submit(len, "abc").result())
    except UsageError as error:
        print("usage:", error)
    except ConnectionError as error:
        print(error.strerror)
sys.stdout.flush()
os._exit(0)
"""


class Cluster(NamedTuple):
    address: str
    process: subprocess.Popen[str]


@contextmanager
def cluster(
    directory: Path, workers: int = 1, protocol: str = "tcp", env: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A scheduler and its workers, which keep what they write in a directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, protocol, str(workers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "DASK_TEMPORARY_DIRECTORY": str(directory), **(env or {})},
        text=True,
    )
    assert process.stdout
    with process:
        try:
            yield Cluster(process.stdout.readline().strip(), process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler that has a worker."""
    with cluster(tmp_path_factory.mktemp("dask")) as running:
        yield running.address


def asked(*addresses: str | Path, **env: str) -> list[str]:
    """What comes of asking each of these; Dask is not to say anything."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, *addresses],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def aiocp(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env={**os.environ, **env}
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(b"source")
    return tmp_path / "source"


# --- addresses -----------------------------------------------------------------------------------


def test_a_scheduler_is_found(running: str, tmp_path: Path) -> None:
    """By its address, with its scheme or without, or what is in its file."""
    assert running.startswith("tcp://127.0.0.1:")
    (tmp_path / "scheduler").write_text(json.dumps({"type": "Scheduler", "address": running}))
    said = asked(running, running.removeprefix("tcp://"), tmp_path / "scheduler")
    assert ["3", "3", "3"] == said


def test_nobody_is_there(tmp_path: Path) -> None:
    """A port where nobody listens answers at once, although Dask would wait for a minute."""
    (tmp_path / "scheduler").write_text(json.dumps({"address": f"tcp://{NOBODY}"}))
    said = asked(
        NOBODY,
        f"tcp://{NOBODY}",
        tmp_path / "scheduler",
        "nowhere.invalid:8786",
        **{TIMEOUT: "600s"},
    )
    refused = f"no scheduler answers at 'tcp://{NOBODY}': Connection refused"
    assert [refused.replace("tcp://", ""), refused, refused] == said[:3]
    assert said[3].startswith("no scheduler answers at 'nowhere.invalid:8786': ")


def test_what_cannot_be_an_address(tmp_path: Path) -> None:
    """Is wrong usage, as is a file that is none of a scheduler."""
    written = ["", "[]", "{}", "text", '"text"']
    files = [tmp_path / str(number) for number in range(len(written))]
    for file, text in zip(files, written, strict=True):
        file.write_text(text)
    no_addresses = ["tcp://host", "host:port", "smtp://host:25", "host"]
    said = asked(*no_addresses, tmp_path / "nothing", *files)
    words = [
        "invalid value for '--dask': missing port number in address 'host'",
        "--dask takes HOST:PORT, tcp://HOST:PORT, tls://HOST:PORT or a scheduler's file: ",
        "invalid value for '--dask': unknown address scheme 'smtp' (known schemes: ",
        "cannot read 'host': No such file or directory",
        f"cannot read '{tmp_path}/nothing': No such file or directory",
        *(f"--dask: '{file}' is no file that a scheduler has written" for file in files),
    ]
    assert len(words) == len(said)
    for line, expected in zip(said, words, strict=True):
        assert line.startswith("usage: ")
        assert expected in line


def test_a_scheduler_without_workers(tmp_path: Path) -> None:
    with cluster(tmp_path, workers=0) as idle:
        said = asked(idle.address, **{TIMEOUT: "1s"})
        assert [f"the scheduler at '{idle.address}' has no workers"] == said


def test_something_else_is_there() -> None:
    """That says nothing, for as long as Dask's configuration has one wait, or no sense."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        (said,) = asked(address, **{TIMEOUT: "1s"})
        assert said.startswith(f"no scheduler answers at '{address}': ")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        asking = subprocess.Popen(
            [sys.executable, "-c", ASK, address], stdout=subprocess.PIPE, text=True
        )
        with asking, other.accept()[0], other.accept()[0] as client:
            client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            assert asking.stdout
            said = asking.stdout.read()
    assert said == f"no scheduler answers at '{address}': something else does\n"


# --- TLS -----------------------------------------------------------------------------------------


def certificate(directory: Path, name: str) -> dict[str, str]:
    """Dask's settings, as environment, for a certificate that is its own authority."""
    key, certificate = directory / f"{name}.key", directory / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    pairs = {
        f"{TLS}{who}__{what}": str(file)
        for who in ("CLIENT", "SCHEDULER", "WORKER")
        for what, file in (("KEY", key), ("CERT", certificate))
    }
    return {f"{TLS}CA_FILE": str(certificate), **pairs}


def test_tls(tmp_path: Path) -> None:
    """As Dask's configuration has it, a whole copy by it; what is wrong with it is told."""
    tree = tmp_path / "tree"
    for i in range(600):
        (tree / f"{i % 3}").mkdir(parents=True, exist_ok=True)
        (tree / f"{i % 3}/{i}").write_bytes(b"%d" % i * i)
    ours, theirs = certificate(tmp_path, "ours"), certificate(tmp_path, "theirs")
    with cluster(tmp_path, protocol="tls", env=ours) as secured:
        address = secured.address
        assert address.startswith("tls://")
        assert ["3"] == asked(address, **ours)
        done = aiocp("-aT", "--dask", address, tree, tmp_path / "copy", **ours)
        assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
        assert snapshot(tree) == snapshot(tmp_path / "copy")
        unanswered = f"no scheduler answers at '{address}': "
        (said,) = asked(address, **theirs)
        assert said.startswith(f"{unanswered}[SSL: CERTIFICATE_VERIFY_FAILED] ")
        (said,) = asked(address, **theirs | {f"{TLS}CA_FILE": ours[f"{TLS}CA_FILE"]})
        assert said.startswith(unanswered)
        plain = address.replace("tls://", "tcp://")
        (said, *more) = asked(plain, address)
        assert said.startswith(f"no scheduler answers at '{plain}': ")
        missing = {name: f"{file}.not" for name, file in ours.items()}
        more += asked(address, **missing)
    takes = (
        "usage: TLS takes distributed.comm.tls.ca-file, .client.cert and .client.key of Dask's"
        " configuration: "
    )
    assert [f"{takes}not all are set", f"{takes}No such file or directory"] == more


# --- the command ---------------------------------------------------------------------------------


def test_workers_copy(running: str, tmp_path: Path) -> None:
    """All operands; the summary has a line, or an object, for each of them."""
    for tree in ("one", "two"):
        (tmp_path / tree).mkdir()
        for number in range(3):
            (tmp_path / tree / str(number)).write_bytes(b"%d" % number * 1000)
    (tmp_path / "into").mkdir()
    operands = [tmp_path / name for name in ("one", "two", "into")]
    done = aiocp("-rv", *operands, f"--dask={running}")
    *_, worker = done.stderr.splitlines()
    assert done.returncode == 0
    assert re.fullmatch(
        r"aiocp: [\w.-]+:\d+: 2 batches, 6 files: 6,000 bytes in \d+\.\d{3} s, \d+ MB/s;"
        r" \d+ of \d+ in flight",
        worker,
    )
    for tree in ("one", "two"):
        subprocess.run(["diff", "-r", tmp_path / tree, tmp_path / "into" / tree], check=True)
    done = aiocp("-r", "--json", *operands, f"--dask={running}")
    assert (0, "") == (done.returncode, done.stderr)
    (told,) = json.loads(done.stdout.splitlines()[-1])["workers"]
    assert {*Worker._fields} == told.keys()
    assert (2, 6, 6000) == (told["batches"], told["files"], told["bytes"])


def test_nobody_copies(source: Path, tmp_path: Path) -> None:
    """One line, exit status 1, nothing touched; and an object for who reads these."""
    done = aiocp(source, tmp_path / "copy", "--dask", NOBODY)
    line = f"no scheduler answers at '{NOBODY}': Connection refused"
    assert (Exit.NOT_COPIED, "", f"aiocp: {line}\n") == (done.returncode, done.stdout, done.stderr)
    done = aiocp(
        source, tmp_path / "copy", "--json", f"--checksum=sha256={tmp_path}/sums", "--dask", NOBODY
    )
    error, summary = map(json.loads, done.stdout.splitlines())
    assert ("error", None, None, line) == tuple(
        error[name] for name in ("type", "source", "destination", "message")
    )
    assert (0, 1, 1) == (summary["files"], summary["errors"], summary["exit_status"])
    assert ["source"] == os.listdir(tmp_path)


def test_wrong_addresses_are_wrong_usage(source: Path, tmp_path: Path) -> None:
    done = aiocp(source, tmp_path / "copy", "--dask", tmp_path / "nothing")
    assert Exit.USAGE == done.returncode
    assert re.fullmatch(r"aiocp: --dask takes .*; try 'aiocp --help'\n", done.stderr)


def test_dask_is_not_installed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "without" / "distributed").mkdir(parents=True)
    (tmp_path / "without" / "distributed" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'distributed'\")"
    )
    done = aiocp(source, tmp_path / "copy", "--dask", NOBODY, PYTHONPATH=str(tmp_path / "without"))
    assert (Exit.USAGE, "") == (done.returncode, done.stdout)
    assert done.stderr == (
        "aiocp: --dask takes Dask, pip install 'aiocp[dask]': No module named 'distributed';"
        " try 'aiocp --help'\n"
    )


def test_dask_is_not_configured_well(source: Path, tmp_path: Path) -> None:
    (tmp_path / "dask.yaml").write_text("distributed: [")
    for env in ({"DASK_CONFIG": str(tmp_path)}, {TIMEOUT: "soon"}):
        done = aiocp(source, tmp_path / "copy", "--dask", NOBODY, **env)
        assert Exit.USAGE == done.returncode
        (line,) = done.stderr.splitlines()
        assert line.startswith("aiocp: Dask's configuration cannot be used: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bwlimit=1M"], "--bwlimit is kept by one machine: it excludes --dask"),
        (["--in-place"], "--in-place excludes --dask"),
        (["--probe=."], "--probe copies nothing: it goes with --plot and --json only"),
        (["--dask"], "option '--dask' requires an argument"),
    ],
)
def test_what_does_not_go_with_it(
    source: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    """And is told before anybody is asked."""
    done = aiocp(source, tmp_path / "copy", f"--dask={NOBODY}", *arguments)
    expected = f"aiocp: {words}; try 'aiocp --help'\n"
    assert (Exit.USAGE, expected) == (done.returncode, done.stderr)


def test_a_dry_run_needs_nobody(source: Path, tmp_path: Path) -> None:
    done = aiocp(source, tmp_path / "copy", f"--dask={NOBODY}", "--dry-run")
    assert (0, f"'{source}' -> '{tmp_path}/copy'\n") == (done.returncode, done.stdout)


def test_nothing_of_dask_is_loaded_unasked(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "aiocp", "-v"]
    command += [str(source), str(tmp_path / "copy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "aiocp.summary" in loaded
    unwanted = {"aiocp.dask_client", "concurrent.futures", "dask", "distributed", "logging"}
    assert set() == loaded & unwanted


def test_an_interrupt_while_it_connects(source: Path, tmp_path: Path) -> None:
    """Ends it at once: there is nothing yet to be tidied up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        copy = subprocess.Popen(
            [*COMMAND, source, tmp_path / "copy", "--dask", address],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, TIMEOUT: "600s"},
        )
        with copy, silent.accept()[0], silent.accept()[0]:
            copy.send_signal(signal.SIGINT)
            assert copy.stdout
            assert copy.stdout.read() == b""
    assert copy.returncode == -signal.SIGINT


# --- a scheduler that goes -----------------------------------------------------------------------

# A scheduler is killed while it has something to do, before the executor is let go of.
LOSE = """
import os, signal, sys, time
from aiocp.dask_client import connect

with connect(sys.argv[1]) as executor:
    waiting = executor.submit(time.sleep, 600)
    os.kill(int(sys.argv[2]), signal.SIGKILL)
    try:
        waiting.result()
    except BaseException as error:
        print(type(error).__name__)
sys.stdout.flush()
os._exit(0)
"""


def test_a_lost_scheduler_is_nobodys_business_but_ours(tmp_path: Path) -> None:
    """What waits for it is told, and nothing is on stderr, where Dask would log a traceback."""
    with cluster(tmp_path) as lost:
        done = subprocess.run(
            [sys.executable, "-c", LOSE, lost.address, str(lost.process.pid)],
            capture_output=True,
            text=True,
        )
    assert (0, "CancelledError\n", "") == (done.returncode, done.stdout, done.stderr)
