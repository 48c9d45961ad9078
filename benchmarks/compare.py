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


def figures(value: object, name: tuple[str, ...] = ()) -> Iterator[tuple[str, float, str]]:
    """The name, the median and the text of every figure in what a benchmark wrote."""
    if isinstance(value, dict) and "median" in value:
        low, high = value["quartiles"]
        middle = value["median"]
        yield " / ".join(name), middle, f"{middle:.4g} [{low:.4g} to {high:.4g}]"
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from figures(part, (*name, key))
    elif isinstance(value, list):
        for number, part in enumerate(value, 1):
            title = part.get("title") if isinstance(part, dict) else None
            yield from figures(part, (*name, title or str(number)))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield " / ".join(name), value, f"{value:.4g}"


def compare(one: Path, other: Path) -> None:
    """Print the figures that two files have in common."""
    contents = [json.loads(path.read_text()) for path in (one, other)]
    for letter, content in zip("AB", contents, strict=True):
        machine = content["machine"]
        print(f"{letter}: {in_words(machine, [machine['clock_mhz']])}")
    found = [
        {name.replace(" / contenders", ""): rest for name, *rest in figures(content["results"])}
        for content in contents
    ]
    width = max((len(name) for name in found[0]), default=0)
    for name, (a, text) in found[0].items():
        if name in found[1]:
            b, other_text = found[1][name]
            ratio = f"{b / a:.2f} x" if a else ""
            print(f"  {name:{width}}  {text:>32}  {other_text:>32}  {ratio:>8}")
    missing = [name for name in found[0].keys() ^ found[1].keys()]
    if missing:
        print(f"  in one of them only: {len(missing)} figures, such as {sorted(missing)[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    given = parser.parse_args()
    if not given.a.is_dir():
        return compare(given.a, given.b)
    for path in sorted(given.a.glob("*.json")):
        if (given.b / path.name).exists():
            print(f"\n{path.stem}")
            compare(path, given.b / path.name)


if __name__ == "__main__":
    main()
