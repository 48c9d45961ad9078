"""Files are written whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fastvim.errors import UserError

UNFINISHED = ".unfinished"
# Errors of a place where nothing more can be written, whatever is tried next.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
# Of these, the errors of reading too.
DENIED = (errno.EACCES, errno.EPERM)


def unwritable(error: OSError, place: object) -> str:
    """What one of these errors prevented; `place` is where, if the error names no file."""
    verb = "access" if error.errno in DENIED and error.filename else "write"
    return f"cannot {verb} {error.filename or place}: {error.strerror}"


def make_folder(path: Path) -> None:
    """Create `path`, for results that take long; raises UserError where none could be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"cannot write in {path}: {error.strerror or error}") from error


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below `folder`, in no order, through links to folders too.

    Each folder is searched once, by a way without links where there is one, so no loop is endless.
    """
    seen: set[str] = set()
    waiting = [folder]
    for start in waiting:
        for place, folders, names in os.walk(start):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            below = [Path(place, name) for name in folders]
            waiting += sorted(path for path in below if path.is_symlink())
            yield from (Path(place, name) for name in names)


def write_atomic(path: str | os.PathLike, data: str | bytes) -> None:
    """Write `data` to `path` through a temporary file beside it and a rename.

    A reader sees the old content or the new, never a part. Raises UserError, with nothing left
    behind, when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    # Text may name a file whose name is no UTF-8.
    content = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(UNFINISHED, f".{path.name}.", path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; results are meant to be shared.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def delete_unfinished(folder: Path) -> None:
    """Delete what `write_atomic` was writing under `folder` when its process was killed.

    Nobody may be writing there.
    """
    for path in folder.rglob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)
