"""The one way to storage: every operation by which a run reads its inputs, or builds and publishes its output.

Each is announced as a `Step` and then done. `intercepted` puts something in between: that is how tests make the Nth
operation fail, end the process at it, or record what a crash could lose. `perform` does the same for operations of
other storage, such as the requests to an object store.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import xxhash

if TYPE_CHECKING:
    import pyarrow as pa

Done = TypeVar("Done")

Operation = (
    Literal["look", "list", "open", "create", "write", "sync", "link", "get", "put", "copy"]
    | Literal["rename", "exchange", "make", "remove", "remove folder", "lock"]
)
"""What is done: look stands for what a file system tells of an input, open for reading or mapping a file, get, put and
copy for requests to an object store."""

_BUFFER_BYTES = 1 << 17
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_AT_FDCWD = -100


@dataclass(frozen=True, slots=True)
class Step:
    """One operation."""

    operation: Operation
    path: str
    to: str = ""
    """The other name of a link, rename or exchange."""

    data: Any = None
    """The bytes to be written; of value until the step is done."""


Interceptor = Callable[[Step, Callable[[], Any]], Any]
"""Is called with a step and what does it, and returns what that gives; it may raise `OSError` instead."""

_interceptor: Interceptor | None = None


@contextmanager
def intercepted(interceptor: Interceptor) -> Iterator[None]:
    """Let every step of this process, whatever its thread, go through an interceptor."""
    global _interceptor  # noqa: PLW0603 - storage is the process's
    before, _interceptor = _interceptor, interceptor
    try:
        yield
    finally:
        _interceptor = before


def perform(step: Step, act: Callable[[], Done]) -> Done:
    """Do a step. Raises `OSError`, which names the step's path."""
    try:
        if _interceptor is None:
            return act()
        done: Done = _interceptor(step, act)
        return done
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = step.path
        raise


class _WrittenFile(io.FileIO):
    """A file whose every write to storage is a step."""

    def write(self, data: Any, /) -> int:
        return perform(Step("write", str(self.name), data=data), lambda: super(_WrittenFile, self).write(data))


def create(path: Path) -> io.BufferedWriter:
    """Make a file, or empty it, to be written."""
    raw = perform(Step("create", str(path)), lambda: _WrittenFile(str(path), "w"))
    return io.BufferedWriter(raw, _BUFFER_BYTES)


def append(path: Path) -> io.BufferedWriter:
    """Open a file, or make it, to be written on at its end."""
    raw = perform(Step("create", str(path)), lambda: _WrittenFile(str(path), "a"))
    return io.BufferedWriter(raw, _BUFFER_BYTES)


def sync(file: io.BufferedWriter) -> None:
    """Write what is buffered, and make the file's content durable; its name is not, see `sync_folder`."""
    file.flush()
    perform(Step("sync", str(file.raw.name)), lambda: os.fsync(file.fileno()))  # type: ignore[attr-defined]


def sync_file(path: Path) -> None:
    """Make the content of a file durable that somebody else has written."""
    with open_file(path) as file:
        perform(Step("sync", str(path)), lambda: os.fsync(file.fileno()))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""

    def act() -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    perform(Step("sync", str(folder)), act)


def open_file(path: str | Path) -> BinaryIO:
    """Open a file for reading."""
    return perform(Step("open", str(path)), lambda: open(_no_pipe(path), "rb"))


def _no_pipe(path: str | Path) -> str:
    """The path. Raises `OSError` for a named pipe, at which opening would wait for somebody who writes."""
    if stat.S_ISFIFO(os.stat(path).st_mode):
        raise OSError(errno.ENOTSUP, "a named pipe, not a file", str(path))
    return str(path)


def read_bytes(path: Path) -> bytes:
    """The content of a small file."""
    with open_file(path) as file:
        return file.read()


def map_file(path: str | Path) -> pa.MemoryMappedFile:
    """Map a file for Arrow."""
    import pyarrow as pa  # noqa: PLC0415 - commands that map nothing start without it

    return perform(Step("open", str(path)), lambda: pa.memory_map(_no_pipe(path)))


def arrow_file(path: str | Path) -> pa.OSFile:
    """Open a file for Arrow, which reads it piece by piece."""
    import pyarrow as pa  # noqa: PLC0415 - as above

    return perform(Step("open", str(path)), lambda: pa.OSFile(_no_pipe(path)))


def list_folder(folder: Path) -> list[Path]:
    """What lies in a folder, sorted."""
    return perform(Step("list", str(folder)), lambda: sorted(folder.iterdir()))


def make_folder(folder: Path) -> None:
    """Make a folder in one that exists, unless it is there."""
    perform(Step("make", str(folder)), lambda: folder.mkdir(exist_ok=True))


def make_folders(folder: Path) -> None:
    """Make a folder and those that it is in, unless they are there."""
    if not folder.parent.exists():
        make_folders(folder.parent)
    make_folder(folder)


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    perform(Step("remove", str(path)), lambda: path.unlink(missing_ok=True))


def remove_folder(folder: Path) -> None:
    """Remove an empty folder."""
    perform(Step("remove folder", str(folder)), folder.rmdir)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that lies in it."""
    for path in list_folder(folder):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            remove(path)
    remove_folder(folder)


def point(link: Path, to: str) -> None:
    """Let a symbolic link point to something beside it, in one step, whether or not there is one of that name."""
    made = link.with_name(f".{link.name}.part")
    remove(made)
    perform(Step("link", to, str(made)), lambda: os.symlink(to, made))
    rename(made, link)


def rename(path: Path, to: Path) -> None:
    """Give a file or folder another name, in one step; a file or an empty folder of that name is gone then."""
    perform(Step("rename", str(path), str(to)), lambda: os.replace(path, to))


def exchange(path: Path, other: Path) -> bool:
    """Swap two folders in one step; False, and nothing done, where the kernel or the file system cannot."""

    def act() -> None:
        renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if renameat2(_AT_FDCWD, os.fsencode(path), _AT_FDCWD, os.fsencode(other), _EXCHANGE) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    try:
        perform(Step("exchange", str(path), str(other)), act)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            return False
        raise
    return True


def lock(path: Path, *, is_shared: bool = False) -> int:
    """Make a file unless it is there, and take its kernel lock; returns its descriptor.

    is_shared: beside others who take it so. Raises `BlockingIOError` where another process holds the lock.
    """
    kind = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX

    def act() -> int:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    return perform(Step("lock", str(path)), act)


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """What is known of a written file."""

    bytes: int
    xxh3_128: str


class HashingFile:
    """A binary file that is hashed while it is written, and durable under its name after `finish`."""

    def __init__(self, path: Path, *, is_shared: bool = False) -> None:
        """is_shared: whether others may write the same file at the same time, here or on another machine."""
        self._path = path
        own = f".{uuid.uuid4().hex[:12]}" if is_shared else ""
        self._part = path.with_name(f"{path.name}{own}.part")
        self._file = create(self._part)
        self._hash = xxhash.xxh3_128()
        self._bytes = 0
        self._has_name = False
        self.closed = False

    def write(self, data: bytes | pa.Buffer) -> int:
        """Append bytes."""
        view = memoryview(data)
        self._hash.update(view)
        self._bytes += view.nbytes
        return self._file.write(view)

    def flush(self) -> None:
        """Do nothing: nothing is promised before `finish`."""

    def close(self) -> None:
        """Note that Arrow, which believes that it owns the file, is done with it; see `finish`."""
        self.closed = True

    def finish(self, *, is_durable: bool = True) -> FileFacts:
        """Give the file its name, with durable content; the name is, once its folder is synced.

        is_durable: False for what is only needed while the run goes on, and known by its checksum to the next one.
        """
        if is_durable:
            sync(self._file)
        self._file.close()
        rename(self._part, self._path)
        self._has_name = True
        return FileFacts(bytes=self._bytes, xxh3_128=self._hash.hexdigest())

    def discard(self) -> None:
        """Leave nothing, if that can be; does nothing after `finish`."""
        if self._has_name:
            return
        with suppress(OSError):  # what is still buffered has no place either
            self._file.close()
        with suppress(OSError):  # whoever opens the folder next removes what is half-written
            remove(self._part)


def write_file(path: Path, content: bytes, *, is_shared: bool = False) -> FileFacts:
    """Write a small file durably, as a shard is written. Raises `OSError`; leaves no partial file."""
    file = HashingFile(path, is_shared=is_shared)
    try:
        file.write(content)
        return file.finish()
    finally:
        file.discard()


def link_or_copy(source: Path, target: Path) -> None:
    """Let a file have another name, too; where the file system has no links, copy it durably. Raises `OSError`."""
    try:
        perform(Step("link", str(source), str(target)), lambda: os.link(source, target))
    except FileExistsError:
        pass  # an interrupted run did it
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP):
            raise
        with open_file(source) as content:
            file = HashingFile(target)
            try:
                while block := content.read(1 << 20):
                    file.write(block)
                file.finish()
            finally:
                file.discard()


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk where a folder is, or will be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def free_text(folder: Path) -> str:
    """The free space on a folder's disk, for a message."""
    return f"{free_bytes(folder) / 1e9:,.3f} GB free"
