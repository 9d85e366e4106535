"""`--scheduler`: which engine, and where."""

from __future__ import annotations

from expunge.core.errors import ConfigError, unknown_name_hint
from expunge.experiments.scheduler.progress import Reporter
from expunge.experiments.store.addresses import check_url, get_scheme

from .base import Engine

#: The default: processes of this machine that communicate through the store (`scheduler.pool`).
PROCESSES = "processes"
_KNOWN = (PROCESSES, "dask", "dask://HOST:8786", "dask+tls://HOST:8786", "ray", "ray://HOST:10001")


def open_engine(scheduler: str, workers: int, reporter: Reporter) -> Engine | None:
    """Choose the engine that a name or an address means; nothing is connected.

    Args:
        scheduler: `processes`; `dask` or `ray`, on this machine; `dask://HOST:PORT` or `ray://HOST:PORT`.
        workers: number of workers on this machine; 1 for an address, whose workers are started elsewhere.
        reporter: receives notes.

    Returns:
        The engine; None for `processes`.

    Raises:
        ConfigError: the scheme is unknown, the address is not complete, or the library is not installed.

    Example:
        >>> from expunge.experiments.scheduler.progress import NullReporter
        >>> open_engine("processes", 2, NullReporter()) is None
        True
        >>> open_engine("slurm", 2, NullReporter())
        Traceback (most recent call last):
            ...
        expunge.core.errors.ConfigError: scheduler: there is no scheduler 'slurm'
          hint: known: dask, dask+tls://HOST:8786, dask://HOST:8786, processes, ray, ray://HOST:10001
    """
    if scheduler == PROCESSES:
        return None
    scheme = get_scheme(scheduler)
    if scheme is not None:
        check_url(scheduler, "scheduler")
    address = "" if scheme is None else scheduler.partition("://")[2].rstrip("/")
    name = scheduler if scheme is None else scheme
    if name not in ("dask", "ray") and not (name == "dask+tls" and address):
        shown = f"{name}://..." if address else scheduler
        raise ConfigError(f"there is no scheduler {shown!r}", where="scheduler", hint=unknown_name_hint(name, _KNOWN))
    if scheme is not None:
        _check_address(address, scheduler)
        if workers != 1:
            what = f"the workers of {scheduler} are started elsewhere"
            raise ConfigError(what, where="workers", hint="leave out --workers")
    if name == "ray":
        from .ray_engine import RayEngine

        return RayEngine(address, workers)
    from .dask_engine import DaskEngine

    return DaskEngine(address, workers, reporter, secure=name == "dask+tls")


def _check_address(address: str, scheduler: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in address:
        hint = "for example dask://127.0.0.1:8786 or ray://127.0.0.1:10001"
        raise ConfigError("an address is HOST:PORT", where=f"scheduler {scheduler}", hint=hint)
