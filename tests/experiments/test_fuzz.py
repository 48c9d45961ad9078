"""Two hundred damaged experiment files: each gives one clear error or a valid plan."""

import copy
import random
import signal

import pytest
import yaml
from click.testing import CliRunner

from fastvim_cli.main import main

SEED = 20250202
CASES = 200
SECONDS = 20

SOUND = {
    "name": "fuzz",
    "question": "Does it hold?",
    "base": {
        "task": "classification",
        "data": {"name": "fashion-mnist-subset", "hflip": 0.5, "train_images": 200},
        "model": {"name": "fastvim_femto", "patch_size": 4, "schedule": ["col", "row"]},
        "training": {"epochs": 2, "batch_size": 20, "lr": 0.001, "warmup_epochs": 0},
    },
    "baseline": "plain",
    "variants": {"plain": {}, "max": {"model.pooling": "max"}, "vim": {"model.schedule": []}},
    "seeds": 2,
    "metric": "top1",
    "profiles": {"smoke": {"seeds": [0, 3], "training.epochs": 1}, "long": {"training.epochs": 9}},
    "default_profile": "smoke",
}

HOSTILE = [
    None, True, -1, 0, 10**30, -(2**62), 1e308, -0.0, 0.1, "", " ", "x" * 5000, "\u0000", "../../x",
    "${HOME}", "!!python/object:os.system", "col", [], [[]], [None], ["col"] * 5000, {}, {"": {}},
    {"a": {"b": {"c": 1}}}, [{"x": 1}], float("inf"), "1e-3", "9" * 6000, {"seeds": 10**9},
    "fashion-mnist", "timm/none", ["col", "frame"], [28, 27], {"name": "x"},
]  # fmt: skip

TEXTS = [
    "a: &a [1, 2]\nb: &b [*a, *a, *a]\nc: [*b, *b]\n",
    "{[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "[" * 20_000,
    "name: &x\n  <<: *x\n",
    "base: &b {a: *b}\n",
    "&a [*a]\n",
    "base: !!python/object/apply:os.system ['echo hacked > hacked']\n",
    "base: !!binary ////\n",
    "base: !!int x\n",
    "base: !!timestamp 2020-99-99\n",
    "base: {? [a, b] : 1}\n",
    "name: a\nname: b\n",
    "\t- tab\n",
    "%YAML 9.9\n---\na: 1\n",
    "--- 1\n--- 2\n",
    "name: 'open\n",
    "# nothing\n",
    "- a\n- b\n",
    "base: {1: 2}\n",
    "seeds: 0o777777777777777777777777\n",
    "base:\n" + "".join(f"{'  ' * i}k:\n" for i in range(1, 100)),
    "extends: fuzz.yaml\n",
    "extends: ../../../../etc/passwd\n",
    "extends: [a]\n",
    "extends: 'nul\\0.yaml'\n",
]


def bomb(levels: int, width: int, where: str) -> str:
    """Anchors that would expand to width ** levels values."""
    lines = ["x0: &x0 [lol, lol]"] if where == "list" else ["x0: &x0 {a: lol}"]
    for level in range(1, levels):
        aliases = [f"*x{level - 1}"] * width
        inside = (
            f"[{', '.join(aliases)}]"
            if where == "list"
            else "{" + ", ".join(f"k{i}: {alias}" for i, alias in enumerate(aliases)) + "}"
        )
        lines.append(f"x{level}: &x{level} {inside}")
    return "\n".join([*lines, f"base: *x{levels - 1}"]) + "\n"


def places(node, path=()):
    """Every path in the tree."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, child in items:
        if isinstance(child, (dict, list)):
            yield from places(child, (*path, key))
        else:
            yield (*path, key)


def mutate(tree: dict, draw: random.Random) -> dict:
    tree = copy.deepcopy(tree)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        path = draw.choice([path for path in places(tree) if path])
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        key, action = path[-1], draw.choice(["drop", "rename", "retype", "nest", "swap", "extra"])
        if action == "drop":
            del parent[key]
        elif action == "rename" and isinstance(parent, dict):
            name = str(key)
            cut = draw.randrange(len(name)) if name else 0
            parent[draw.choice([name[:cut] + name[cut + 1 :], name + "s", name.upper()])] = (
                parent.pop(key)
            )
        elif action == "nest":
            parent[key] = draw.choice([{str(key): parent[key]}, [parent[key]]])
        elif action == "swap":
            parent[key] = copy.deepcopy(draw.choice(list(SOUND.values())))
        elif action == "extra" and isinstance(parent, dict):
            parent[draw.choice(["modle.lr", "training.lr", "zzz", "", "model"])] = draw.choice(
                HOSTILE
            )
        else:
            parent[key] = draw.choice(HOSTILE)
    return tree


def damage(text: str, draw: random.Random) -> str:
    """Cut, repeat or replace characters of the file itself."""
    start = draw.randrange(len(text))
    stop = min(len(text), start + draw.randrange(1, 30))
    middle = draw.choice(
        ["", text[start:stop] * 2, "\x00", "\t", ": ", "}{", "&a *a", "\ufffe", "%"]
    )
    return text[:start] + middle + text[stop:]


def cases() -> list[str]:
    draw = random.Random(SEED)
    texts = list(TEXTS)
    texts += [bomb(9, 9, "list"), bomb(9, 9, "map"), bomb(40, 2, "list"), bomb(300, 1, "map")]
    texts.append("base: {a: &a " + "y" * 200_000 + ", b: [" + "*a, " * 9_000 + "]}\n")
    texts.append(yaml.safe_dump(SOUND) + "#" * 300_000)
    sound = yaml.safe_dump(SOUND)
    texts += [damage(sound, draw) for _ in range(40)]
    while len(texts) < CASES:
        texts.append(yaml.safe_dump(mutate(SOUND, draw), width=10**9))
    return texts


class Hang(BaseException):
    pass


@pytest.fixture
def time_limit():
    def stop(number, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_two_hundred_damaged_files(tmp_path, monkeypatch, time_limit, capsys):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    valid = errors = 0
    for number, text in enumerate(cases()):
        file = tmp_path / "fuzz.yaml"
        file.write_text(text, encoding="utf-8", errors="surrogatepass")
        signal.alarm(SECONDS)
        result = runner.invoke(main, ["show", "fuzz.yaml"])
        signal.alarm(0)
        said = f"case {number}:\n{text[:600]}\n-> {result.output[:600]}"
        assert result.exception is None or isinstance(result.exception, SystemExit), said
        assert [path.name for path in tmp_path.iterdir()] == ["fuzz.yaml"], said
        if result.exit_code == 0:
            valid += 1
            continue
        errors += 1
        assert result.exit_code == 2, said
        assert result.output.count("Error: ") == 1, said
        assert "Traceback" not in result.output, said
        assert len(result.output) < 2000, said
        assert "fuzz.yaml" in result.output, said
    assert valid + errors == CASES
    # A fuzz test of which nearly all or nearly no cases are valid tests little.
    assert valid >= 15 and errors >= 120, (valid, errors)
    with capsys.disabled():
        print(f" [{errors} clear errors, {valid} valid plans]", end="")


def test_sound_file_is_valid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fuzz.yaml").write_text(yaml.safe_dump(SOUND))
    result = CliRunner().invoke(main, ["show", "fuzz.yaml"])
    assert result.exit_code == 0, result.output
    assert "3 variants x seeds 0, 3 = 6 runs" in result.output
