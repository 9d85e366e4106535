"""A folder behind a URL: files are read, written and removed through `fsspec`. Does not import torch.

Credentials come from the environment, as fsspec and the library of the file system read them (`AWS_ACCESS_KEY_ID`,
`FSSPEC_S3_ENDPOINT_URL`, ...); they are in no URL, key, message or file of the store.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from expunge.core.errors import ConfigError, ExpungeError, StoreError, unknown_name_hint
from expunge.core.files import staged_file

from .addresses import check_url, get_scheme, scrub

INSTALL = 'pip install "expunge[remote]"'
#: Errors that another try does not fix, by the name of their class; others may be a lost connection.
_LASTING = (
    "NoCredentialsError", "PartialCredentialsError", "PermissionError", "NotImplementedError", "ParamValidationError",
)  # fmt: skip
_LASTING_CODES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)


class RemoteFolder:
    """A folder of a file system that `fsspec` knows.

    Args:
        url: `s3://bucket/folder`, `gs://...`, `memory://...`, `file:///...`.

    Raises:
        ConfigError: the URL has credentials, its scheme is unknown, or a package is not installed.
    """

    def __init__(self, url: str) -> None:
        check_url(url, "store")
        scheme = get_scheme(url)
        self.url = url.rstrip("/")
        try:
            import fsspec
        except ImportError as error:
            raise ConfigError("a store at a URL needs fsspec", where=f"store {url}", hint=INSTALL) from error
        if scheme not in fsspec.available_protocols():
            hint = unknown_name_hint(scheme, ["s3", "gs", "abfs", "file", "memory", "sftp", "webdav"])
            raise ConfigError(f"{scheme}:// is not a file system", where=f"store {url}", hint=hint)
        try:
            found = fsspec.core.url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=scheme != "memory")
        except ImportError as error:
            hint = f"{INSTALL} for s3://; otherwise: {error}"
            raise ConfigError(f"{scheme}:// needs a package that is not installed", where="store", hint=hint) from error
        except Exception as error:
            raise ConfigError(f"cannot be opened ({scrub(error)})", where=f"store {url}") from error
        self._files: Any = found[0]
        self._root = str(found[1]).rstrip("/")
        self._is_local = scheme in ("file", "local")

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextlib.contextmanager
    def _translated(self, verb: str) -> Iterator[None]:
        """Raise StoreError for whatever the file system raises."""
        try:
            yield
        except ExpungeError as error:
            raise StoreError(f"cannot be {verb} ({error.what})", where=self.url) from error
        except Exception as error:
            name, reason = type(error).__name__, scrub(error) or "no reason given"
            failed = StoreError(f"the store cannot be {verb} ({name}: {reason})", where=self.url, hint=_find_hint(name))
            number = getattr(error, "errno", None)
            failed.transient = (
                name not in _LASTING and number not in _LASTING_CODES and not isinstance(error, FileNotFoundError)
            )
            raise failed from None  # the cause may hold what was sent

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""
        with self._translated("read"):
            try:
                return bytes(self._files.cat_file(self._place(name)))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def download(self, name: str, path: Path) -> bool:
        """Write the content of a file to a local path; returns whether there is such a file."""
        with self._translated("read"):
            try:
                self._files.get_file(self._place(name), str(path))
            except (FileNotFoundError, NotADirectoryError):
                return False
        return True

    def measure(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        with self._translated("read"):
            try:
                return int(self._files.info(self._place(name))["size"])
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file; others see it whole or not at all."""
        with self._translated("written"):
            if self._is_local:
                with staged_file(self._place(name)) as temporary:
                    temporary.write_bytes(content)
            else:
                self._make_parent(name)
                self._files.pipe_file(self._place(name), content)

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file; others see it whole or not at all."""
        with self._translated("written"):
            if self._is_local:
                with staged_file(self._place(name)) as temporary:
                    shutil.copyfile(path, temporary)
            else:
                self._make_parent(name)
                self._files.put_file(str(path), self._place(name))

    def _make_parent(self, name: str) -> None:
        """File systems with real folders need them; object stores have none (s3fs would look for the bucket)."""
        if not _has_only_objects(self._files):
            self._files.makedirs(self._place(name).rpartition("/")[0], exist_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it, if it exists."""
        with self._translated("written"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._files.rm(self._place(name), recursive=True)

    def list_names(self, name: str) -> list[str]:
        """Names of what is in a folder, sorted; none if it does not exist."""
        with self._translated("read"):
            try:
                found = self._files.ls(self._place(name), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    def count_bytes(self) -> int:
        """Bytes of all files."""
        with self._translated("read"):
            try:
                return int(self._files.du(self._root))
            except (FileNotFoundError, NotADirectoryError):
                return 0


def _has_only_objects(files: Any) -> bool:
    protocol = getattr(files, "protocol", "")
    return not {"s3", "s3a", "gs", "gcs"}.isdisjoint((protocol,) if isinstance(protocol, str) else protocol)


def _find_hint(name: str) -> str | None:
    """The fix for an error of a file system, by the name of its class."""
    if "Credentials" in name:
        return (
            "credentials come from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, for example"
        )
    if name in ("PermissionError", "ClientError"):
        return "check the rights of the credentials in the environment"
    return None
