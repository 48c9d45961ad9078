"""Where data sets are looked for on this machine."""

import os
from dataclasses import dataclass
from pathlib import Path

from fastvim.data.sets import SETS, Layout
from fastvim.errors import UserError

PACKAGED = Path(__file__).parent / "files"


@dataclass(frozen=True)
class FoundSet:
    """A data set as `fastvim doctor` shows it.

    `path` is the folder it was found in, `size` the bytes of its files, `looked` a line for every
    place that was searched with what was missing there.
    """

    name: str
    found: bool
    licence: str
    path: Path | None
    size: int | None
    looked: tuple[str, ...]


def search_folders(root: str | None = None) -> list[Path]:
    """The folders searched, in order. A `root` that is given is the only one: were it misspelt,
    another copy of the set must not quietly take its place."""
    if root is not None:
        return [Path(root).expanduser()]
    environment = os.environ.get("FASTVIM_DATA")
    shared = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    folders = [Path(environment).expanduser()] if environment else []
    return [*folders, Path(shared).expanduser() / "fastvim", Path("/usr/share/datasets")]


def _present(folder: Path, name: str, layout: Layout) -> Path | None:
    names = (name, f"{name}.gz") if layout.gzipped else (name,)
    return next((folder / each for each in names if os.path.isfile(folder / each)), None)


def _search(name: str, root: str | None) -> tuple[Layout | None, Path | None, list[str]]:
    """The layout and folder in which the set is complete, or None and None, and a line for every
    place looked in before."""
    looked: list[str] = []
    for base in search_folders(root):
        for layout in SETS[name].layouts:
            for part in (*layout.folders, "."):
                folder = base / part
                missing = [file for file in layout.files if not _present(folder, file, layout)]
                if not missing:
                    return layout, folder, looked
                looked.append(f"{folder}: {_lacking(folder, missing, layout)}")
    return None, None, list(dict.fromkeys(looked))


def _lacking(folder: Path, missing: list[str], layout: Layout) -> str:
    if not folder.is_dir():
        return "no such folder"
    if len(missing) == len(layout.files):
        return "none of the files"
    return f"missing {', '.join(missing)}"


def locate(name: str, root: str | None = None) -> tuple[Layout, dict[str, Path]]:
    """The layout of set `name` on this machine and the path of each of its files.

    Raises UserError with the files, every place looked in and what was missing there.
    """
    layout, folder, looked = _search(name, root)
    if layout is None or folder is None:
        ending = "" if root is not None else ", or set data.root or FASTVIM_DATA to where it is"
        raise UserError(
            f"data set {name} was not found. It needs {_needed(name)}{ending}. Looked in:\n  "
            + "\n  ".join(looked)
        )
    paths = {file: _present(folder, file, layout) for file in layout.files}
    return layout, {file: path for file, path in paths.items() if path is not None}


def _needed(name: str) -> str:
    kinds = []
    for layout in SETS[name].layouts:
        ending = ", each plain or .gz" if layout.gzipped else ""
        kinds.append(f"{', '.join(layout.files)} ({layout.format} version{ending})")
    return " or ".join(kinds)


def find_datasets(root: str | None = None) -> list[FoundSet]:
    """Every data set by name, found or not, in `root` or the usual folders. Reads no images."""
    return [_find(name, root) for name in SETS]


def _find(name: str, root: str | None) -> FoundSet:
    licence = SETS[name].licence
    if name == "fashion-mnist-subset":
        files = list(PACKAGED.glob("fashion-mnist-*.png"))
        size = sum(file.stat().st_size for file in files)
        return FoundSet(name, len(files) == 3, licence, PACKAGED, size, (str(PACKAGED),))
    if not SETS[name].in_memory:
        return FoundSet(name, False, licence, None, None, ("the folder given as data.root",))
    layout, folder, looked = _search(name, root)
    if layout is None or folder is None:
        return FoundSet(name, False, licence, None, None, tuple(looked))
    paths = (_present(folder, file, layout) for file in layout.files)
    size = sum(path.stat().st_size for path in paths if path is not None)
    return FoundSet(name, True, licence, folder, size, (*looked, str(folder)))
