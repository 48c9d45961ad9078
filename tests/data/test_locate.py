import pytest

from fastvim.data import DataConfig, find_datasets, load
from fastvim.data.locate import locate, search_folders
from fastvim.data.sets import SETS
from fastvim.errors import UserError


@pytest.fixture
def homes(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVIM_DATA", str(tmp_path / "environment"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    return tmp_path


def make(folder, name, layout=0, ending=""):
    folder.mkdir(parents=True)
    for file in SETS[name].layouts[layout].files:
        (folder / f"{file}{ending}").write_bytes(b"12345")


def test_order_of_the_search(homes):
    first, second = homes / "environment" / "cifar-100-python", homes / "share/fastvim"
    make(second, "cifar100")
    layout, paths = locate("cifar100")
    assert (layout.format, paths["test.bin"]) == ("binary", second / "test.bin")
    make(first, "cifar100", layout=1)
    layout, paths = locate("cifar100")
    assert (layout.format, paths["test"]) == ("python", first / "test")
    assert str(search_folders()[-1]) == "/usr/share/datasets"


def test_given_root_is_the_only_place(homes):
    make(homes / "environment" / "cifar-10-batches-bin", "cifar10")
    assert search_folders(str(homes / "wrong")) == [homes / "wrong"]
    with pytest.raises(UserError, match="wrong/cifar-10-batches-bin: no such folder"):
        locate("cifar10", str(homes / "wrong"))


def test_error_says_what_was_looked_for_and_where(homes):
    folder = homes / "environment" / "cifar-10-batches-bin"
    make(folder, "cifar10")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(UserError) as caught:
        load(DataConfig(name="cifar10"))
    message = str(caught.value)
    assert f"{folder}: missing data_batch_4.bin\n" in message
    assert f"{homes / 'share/fastvim/cifar-10-batches-py'}: no such folder" in message
    assert "data_batch_1.bin" in message and "FASTVIM_DATA" in message


def test_find_datasets(homes):
    make(homes / "share/fastvim/FashionMNIST/raw", "fashion-mnist", ending=".gz")
    found = {each.name: each for each in find_datasets()}
    assert list(found) == list(SETS)
    assert found["fashion-mnist"].path == homes / "share/fastvim/FashionMNIST/raw"
    assert found["fashion-mnist"].size == 4 * 5
    assert found["fashion-mnist-subset"].found and found["fashion-mnist-subset"].size > 5e6
    assert not found["cifar10"].found and found["cifar10"].size is None
    assert str(homes / "environment/cifar-10-batches-bin") in "\n".join(found["cifar10"].looked)
    assert found["fashion-mnist"].licence.startswith("MIT")
