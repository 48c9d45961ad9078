"""YAML read with the position of every value, and with bounds on what a file may expand to.

`yaml.safe_load` forgets positions and expands anchors without limit, so the file is composed to
nodes by PyYAML's safe loader and the values are built here.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fastvim.errors import UserError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_VALUES = 10_000

_TAG = "tag:yaml.org,2002:"
# Of YAML 1.2's core schema. In 1.1, which PyYAML reads, 010 is 8, 1:30 is 90 and 1_0 is 10.
_NUMBERS = {
    "int": re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    "float": re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}


class _Loader(yaml.SafeLoader):
    """Safe loader with YAML 1.2's numbers and truth values: 1e-3 is a number, 010 is ten, `on`,
    1:30 and a date are text."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.removeprefix(_TAG) not in ("timestamp", "bool", *_NUMBERS)
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", _pattern, list("-+.0123456789"))
_Loader.add_implicit_resolver(
    f"{_TAG}bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


@dataclass(frozen=True)
class Mark:
    """A place in a file; line and column count from one."""

    file: str
    line: int
    column: int

    def __str__(self):
        return f"{self.file}:{self.line}:{self.column}"


@dataclass
class Document:
    """A YAML mapping and where each of its parts stands: path of keys and indices -> Mark."""

    file: str
    value: dict
    marks: dict[tuple, Mark] = field(default_factory=dict)

    def mark(self, path: tuple) -> Mark:
        """The mark of `path`, or of the closest part above it that has one."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.marks:
                return self.marks[path[:length]]
        return Mark(self.file, 1, 1)


def shorten(value: object, limit: int = 80) -> str:
    """`repr(value)`, cut in the middle when longer than `limit` characters."""
    text = value if isinstance(value, str) and len(value) > 10 * limit else repr(value)
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-limit // 4 :]}"


def read_document(path: str | Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises UserError, with file, line and column, for a syntax error, a duplicate key, a tag other
    than YAML's plain types, a number that is not finite, and a file whose size, nesting or
    expanded anchors pass the bounds above.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES // 1024} KiB, the limit for a YAML file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    return parse_document(text, str(path))


def parse_document(text: str, file: str) -> Document:
    """`read_document` for text already read; `file` names it in errors."""
    node = _compose(text, file)
    builder = _Builder(file)
    if node is None:
        raise UserError(f"{file}: the file is empty")
    value = builder.build(node, (), 0)
    if not isinstance(value, dict):
        raise UserError(f"{builder.place(node)}: expected a mapping at the top level")
    return Document(file, value, builder.marks)


def parse_value(text: str, origin: str) -> object:
    """The YAML value of `text`, such as the right side of `--set key=value`."""
    node = _compose(text, origin)
    return None if node is None else _Builder(origin).build(node, (), 0)


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        _check_nesting(text, file)
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise UserError(f"{place}: YAML syntax: {problem}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: YAML syntax: {str(error).splitlines()[0]}") from error


def _check_nesting(text: str, file: str) -> None:
    # Composing recurses, so depth and number of nodes are checked on the flat stream of events.
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        nodes += isinstance(event, yaml.NodeEvent)
        if depth > MAX_DEPTH or nodes > MAX_VALUES:
            what = f"{MAX_DEPTH} levels deep" if depth > MAX_DEPTH else f"{MAX_VALUES} values"
            mark = event.start_mark
            raise UserError(f"{file}:{mark.line + 1}:{mark.column + 1}: more than {what}")


def _integer(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _Builder:
    def __init__(self, file: str):
        self.file = file
        self.marks: dict[tuple, Mark] = {}
        self.count = 0
        self.scalars = yaml.constructor.SafeConstructor()

    def place(self, node: yaml.Node) -> Mark:
        return Mark(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def build(self, node: yaml.Node, path: tuple, depth: int) -> object:
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            limit = f"{MAX_DEPTH} levels" if depth > MAX_DEPTH else f"{MAX_VALUES} values"
            raise UserError(f"{self.place(node)}: anchors expand to more than {limit}")
        self.marks.setdefault(path, self.place(node))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            items = enumerate(node.value)
            return [self.build(item, (*path, index), depth + 1) for index, item in items]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        raise UserError(f"{self.place(node)}: tag {shorten(node.tag)} is not allowed")

    def _scalar(self, node: yaml.ScalarNode) -> object:
        kind = node.tag.removeprefix(_TAG)
        if kind not in ("null", "bool", "int", "float", "str"):
            raise UserError(f"{self.place(node)}: tag {shorten(node.tag)} is not allowed")
        try:
            if kind in _NUMBERS and not _NUMBERS[kind].match(node.value):
                raise ValueError
            value = _integer(node.value) if kind == "int" else self.scalars.construct_object(node)
        except (ValueError, KeyError, OverflowError, IndexError, yaml.YAMLError) as error:
            raise UserError(
                f"{self.place(node)}: {shorten(node.value)} is not a valid {kind}"
            ) from error
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{self.place(node)}: {node.value} is not a finite number")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{self.place(node)}: {shorten(node.value)} is too large a number")
        return value

    def _mapping(self, node: yaml.MappingNode, path: tuple, depth: int) -> dict:
        own: dict = {}
        merged: list[dict] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged.extend(self._merged(value_node, path, depth))
                continue
            key = self.build(key_node, (*path, None), depth + 1)
            if not isinstance(key, str):
                raise UserError(
                    f"{self.place(key_node)}: the key {shorten(key)} is not text; "
                    "put it in quotes if it is meant as a name"
                )
            if key in own:
                first = self.marks[(*path, key)]
                raise UserError(
                    f"{self.place(key_node)}: key {shorten(key)} appears twice "
                    f"(first in line {first.line})"
                )
            # Own keys take their mark over from one that a merge brought in.
            self.marks[(*path, key)] = self.place(key_node)
            own[key] = self.build(value_node, (*path, key), depth + 1)
        result: dict = {}
        for source in reversed(merged):
            result.update(source)
        return {**result, **own}

    def _merged(self, node: yaml.Node, path: tuple, depth: int) -> list[dict]:
        """The mappings that a merge key (`<<`) brings in, the strongest first."""
        sources = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values = [self.build(source, path, depth + 1) for source in sources]
        for source, value in zip(sources, values, strict=True):
            if not isinstance(value, dict):
                raise UserError(f"{self.place(source)}: '<<' takes a mapping or a list of them")
        return values
