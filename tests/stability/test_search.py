"""Which files of a folder are logs, and what each is read as."""

import os

import pytest

from fastvim.errors import UserError
from fastvim.stability.readers import read_curves

LINES = '{"train_loss": 2.5, "epoch": 0}\n{"train_loss": 2.25, "epoch": 1}\n'


def test_text_and_csv_of_json_lines_are_read_as_such(tmp_path):
    for name in ("log.txt", "other.txt", "log.csv"):
        (tmp_path / name).write_text(LINES)
        (curve,) = read_curves([tmp_path / name])
        assert curve.tag == "train_loss" and curve.values.tolist() == [2.5, 2.25]


def test_a_log_txt_of_json_lines_is_found_and_one_of_words_is_not(tmp_path):
    for name, text in (("mae", LINES), ("detectron2", "[01/02 12:00:00 d2]: loss: 2.5\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.txt").write_text(text)
    (curve,) = read_curves([tmp_path])
    assert curve.path == str(tmp_path / "mae/log.txt")


def test_links_to_folders_are_searched_each_folder_once(tmp_path):
    for name in ("runs/kept", "scratch/moved"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "log.csv").write_text("step,loss\n1,2\n")
    runs = tmp_path / "runs"
    (runs / "again").symlink_to("kept")
    (runs / "loop").symlink_to(runs)
    (runs / "moved").symlink_to(tmp_path / "scratch/moved")
    found = [curve.path.removeprefix(f"{runs}/") for curve in read_curves([runs])]
    assert found == ["kept/log.csv", "moved/log.csv"]


def test_utf16_is_read(tmp_path):
    for name, text in (("a.csv", "step,loss\n1,2\n2,nan\n"), ("log.txt", LINES), ("b", LINES)):
        path = tmp_path / name
        path.write_bytes(text.encode("utf-16"))
        (curve,) = read_curves([path])
        assert len(curve.values) == 2 and curve.lost == []


def test_a_pipe_is_said_to_be_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: a pipe is not read"):
        read_curves([tmp_path / "pipe"])
