"""YAML with positions and bounds."""

import pytest

from fastvim.errors import UserError
from fastvim.experiments.documents import parse_document, parse_value, read_document


def test_marks_point_at_keys_and_items():
    document = parse_document("a: 1\nb:\n  c: [x, y]\n", "f.yaml")
    assert document.value == {"a": 1, "b": {"c": ["x", "y"]}}
    assert str(document.mark(("b", "c"))) == "f.yaml:3:3"
    assert str(document.mark(("b", "c", 1))) == "f.yaml:3:10"
    assert str(document.mark(("b", "absent"))) == "f.yaml:2:1"


def test_anchors_and_merge_keys():
    text = "x: &x {p: 1, q: 2}\ny: &y {q: 3}\nz:\n  <<: [*y, *x]\n  r: 4\nw: *x\n"
    value = parse_document(text, "f.yaml").value
    assert value["z"] == {"p": 1, "q": 3, "r": 4}
    assert value["w"] == value["x"] == {"p": 1, "q": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-2.5E+2", -250.0),
        ("1.5", 1.5),
        ("12", 12),
        ("010", 10),
        ("-08", -8),
        ("0o17", 15),
        ("0x1F", 31),
        ("012.5", 12.5),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("0b11", "0b11"),
        ("1_000", "1_000"),
        ("true", True),
        ("on", "on"),
        ("null", None),
        ("2020-01-01", "2020-01-01"),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("[col, row]", ["col", "row"]),
        ("", None),
    ],
)
def test_values(text, value):
    result = parse_value(text, "--set")
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "f.yaml:2:1: key 'a' appears twice (first in line 1)"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2:2: YAML syntax"),
        ("a: {b: !!python/name:os.system }", "f.yaml:1:8: tag"),
        ("a: .nan", "f.yaml:1:4: .nan is not a finite number"),
        ("a: 99999999999999999999", "f.yaml:1:4"),
        ("1: a", "f.yaml:1:1: the key 1 is not text"),
        ("", "f.yaml: the file is empty"),
        ("[a]", "f.yaml:1:1: expected a mapping"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2:1"),
        ("a: *b\n", "f.yaml:1:4"),
        ("a:\n  <<: 3\n", "f.yaml:2:7: '<<' takes a mapping"),
    ],
)
def test_errors_name_the_place(text, message):
    with pytest.raises(UserError) as error:
        parse_document(text, "f.yaml")
    assert str(error.value).startswith(message)


def test_exploding_anchors_are_stopped():
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
    )
    with pytest.raises(UserError, match="anchors expand to more than 10000 values"):
        parse_document(text, "f.yaml")


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_document(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_document(tmp_path / "binary.yaml")
    (tmp_path / "big.yaml").write_text("# " + "x" * 300_000)
    with pytest.raises(UserError, match="larger than 256 KiB"):
        read_document(tmp_path / "big.yaml")
