"""What benchmarks wrote on two machines, or before and after a change, side by side.

    python benchmarks/compare.py A.json B.json
    python benchmarks/compare.py FOLDER_A FOLDER_B     the files of one name, as of `make bench`

Every figure that is in both: A's, B's and B / A, medians with their quartiles. Times are seconds.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from fastvim.profiling.machine import in_words


def figures(value: object, name: tuple = ()) -> Iterator[tuple[tuple, float, str]]:
    """The name, the median and the text of every figure in what a benchmark wrote."""
    if isinstance(value, dict) and "median" in value:
        low, high = value["quartiles"]
        middle = value["median"]
        yield name, middle, f"{middle:.4g} [{low:.4g} to {high:.4g}]"
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from figures(part, name if key == "contenders" else (*name, key))
    elif isinstance(value, list):
        for number, part in enumerate(value, 1):
            title = part.get("title") if isinstance(part, dict) else None
            yield from figures(part, (*name, title or str(number)))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value, f"{value:.4g}"


def compare(one: Path, other: Path) -> None:
    """Print the figures that two files have in common."""
    contents = [json.loads(path.read_text()) for path in (one, other)]
    for letter, content in zip("AB", contents, strict=True):
        machine = content["machine"]
        print(f"{letter}: {in_words(machine, [machine['clock_mhz']])}")
    found = [{name: rest for name, *rest in figures(content["results"])} for content in contents]
    shared = [name for name in found[0] if name in found[1]]
    width = max((len(" / ".join(name[1:])) for name in shared), default=0)
    title = None
    for name in shared:
        if name[0] != title:
            title = name[0]
            print(f"  {title}")
        (a, text), (b, other_text) = found[0][name], found[1][name]
        ratio = f"{b / a:.2f} x" if a else ""
        print(f"    {' / '.join(name[1:]):{width}}  {text:>32}  {other_text:>32}  {ratio:>8}")
    alone = [" / ".join(name) for name in found[0].keys() ^ found[1].keys()]
    if alone:
        print(f"  in one of them only: {len(alone)} figures, such as {min(alone)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    given = parser.parse_args()
    for path in (given.a, given.b):
        if not path.exists():
            parser.error(f"{path} is not there")
    if not given.a.is_dir():
        return compare(given.a, given.b)
    names = sorted(path.name for path in given.a.glob("*.json") if (given.b / path.name).exists())
    if not names:
        parser.error(f"no file of {given.a} is in {given.b}")
    for name in names:
        print(f"\n{name}")
        compare(given.a / name, given.b / name)


if __name__ == "__main__":
    main()
