"""A progress bar fed by the copier's progress calls."""

from typing import Self

from tqdm import tqdm


class Bar:
    """A tqdm bar on stderr: bytes, rate and time to go."""

    def __init__(self, name: str) -> None:
        self._bar = tqdm(
            desc=name, total=0, unit="B", unit_scale=True, unit_divisor=1024, dynamic_ncols=True
        )

    def update(self, bytes_done: int, bytes_total: int) -> None:
        """Show `bytes_done` of `bytes_total`; 0 for an unknown total."""
        self._bar.total = bytes_total or None
        self._bar.update(bytes_done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
