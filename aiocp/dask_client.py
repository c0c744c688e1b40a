"""--dask: the workers of a running Dask scheduler, as an executor.

Futures, retries and transport are Dask's, and so are the settings: of TLS, and of how long a
connection may take. For the command only, as it silences what Dask has to say on stderr, in the
whole process and for good.
"""

import json
import logging
import os
import re
import socket
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING

from aiocp.options import UsageError

if TYPE_CHECKING:
    from distributed import Client

# Dask's own default is 30 s: that long it waits for an answer, and for a scheduler that it has lost
_TIMEOUTS = {"distributed": {"comm": {"timeouts": {"connect": "10s"}}}}
_LOOK_EVERY = 0.05  # seconds
_FAREWELL = 2.0  # seconds; it takes 0.1 even if nobody hears it


@contextmanager
def connect(address: str) -> Iterator[Executor]:
    """Give the executor of a scheduler at HOST:PORT, tcp://HOST:PORT or tls://..., or of its file.

    A file that is to come, and the first worker, are waited for as long as a connection may take,
    so that all can be started together. Raises UsageError where it is none of them, or something is
    missing here; ConnectionError where no scheduler answers, or one that has no workers.
    """
    logging.disable()
    warnings.simplefilter("ignore")
    timeout = _configured()
    url = _url(address, timeout)
    client = _connected(url, timeout)
    try:
        if not _has_workers(client, timeout):
            raise ConnectionError(None, f"the scheduler at {url!r} has no workers")
        yield client.get_executor(pure=False)
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.close(timeout=_FAREWELL)


def _configured() -> float:
    """Load Dask; for how many seconds it is to try to connect. Raises UsageError."""
    try:
        import dask
        import distributed  # noqa: F401

        dask.config.update_defaults(_TIMEOUTS)
        timeout = dask.config.get("distributed.comm.timeouts.connect")
        return float(dask.utils.parse_timedelta(timeout))
    except ImportError as error:
        raise UsageError(f"--dask takes Dask, pip install 'aiocp[dask]': {error}") from None
    except Exception as error:  # noqa: BLE001 - Dask raises of all kinds
        words = " ".join(str(error).split())
        raise UsageError(f"Dask's configuration cannot be used: {words}") from None


def _url(address: str, timeout: float) -> str:
    """An address that can be one; of a scheduler's file what stands in it. Raises UsageError."""
    from distributed.comm import get_address_host_port, parse_address

    url = address if re.search(r"://|^[^/]+:\d+$", address) else _written(address, timeout)
    try:
        get_address_host_port(url)
    except ValueError as error:
        raise UsageError(f"invalid value for '--dask': {error}") from None
    if parse_address(url)[0] == "tls":
        _check_tls()
    return url


def _written(path: str, timeout: float) -> str:
    """The address in a scheduler's file, which is called as they are if it is to be waited for.

    Raises UsageError.
    """
    until = monotonic() + timeout
    while path.endswith(".json") and not os.path.exists(path) and monotonic() < until:
        sleep(_LOOK_EVERY)  # as Dask's workers do
    try:
        with open(path) as file:
            return str(json.load(file)["address"])
    except OSError as error:
        takes = "HOST:PORT, tcp://HOST:PORT, tls://HOST:PORT or a scheduler's file"
        raise UsageError(f"--dask takes {takes}: cannot read {path!r}: {error.strerror}") from None
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"--dask: {path!r} is no file that a scheduler has written") from None


def _check_tls() -> None:
    """Raise UsageError unless Dask's configuration has what TLS takes."""
    import dask
    from distributed import Security

    if dask.config.get("distributed.client.security-loader") is not None:
        return
    try:
        context = Security().get_connection_args("client")["ssl_context"]
        why = "not all are set" if context is None else None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
    if why is not None:
        raise UsageError(
            "TLS takes distributed.comm.tls.ca-file, .client.cert and .client.key of Dask's"
            f" configuration: {why}"
        )


def _has_workers(client: "Client", timeout: float) -> bool:
    """Whether there is a worker, or comes one."""
    try:
        client.wait_for_workers(1, timeout=timeout)
    except Exception:  # noqa: BLE001 - that it was in vain
        return False
    return True


def _connected(url: str, timeout: float) -> "Client":
    """A client of a scheduler. Raises ConnectionError."""
    from distributed import Client
    from distributed.comm import get_address_host_port

    def connect() -> "Client":
        # does anybody listen? Dask would ask that again and again
        socket.create_connection(get_address_host_port(url), timeout).close()
        return Client(url, timeout=timeout, set_as_default=False)

    # in a thread, for the first word of who accepts a connection Dask waits without end
    connecting = ThreadPoolExecutor(1).submit(connect)
    try:
        return connecting.result(timeout)
    except MemoryError:  # what was taken for the length of a message was none
        why = "something else does"
    except Exception as error:  # noqa: BLE001 - here as well
        why = _reason(error) or f"it took longer than {timeout:g} s"
    raise ConnectionError(None, f"no scheduler answers at {url!r}: {why}")


def _reason(error: BaseException | None) -> str:
    """What was the matter in the first place, in a line: of errors that come one from the other."""
    words = ""
    while error is not None:
        words = getattr(error, "strerror", None) or str(error) or words
        error = error.__cause__ or error.__context__
    return words.partition("\n")[0]
