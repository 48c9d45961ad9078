import contextlib
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from fastvim.data import DataConfig, load
from fastvim.data.images import FileImages
from fastvim.data.transforms import transformed_batches
from fastvim.errors import UserError
from fastvim.experiments.runner import StopRequest


def config(root, **values):
    values = {"image_size": 32, "scale": [0.5, 1.0]} | values
    return DataConfig(name="imagefolder", root=str(root), **values)


def collect(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def test_image_folder(image_folder):
    data = load(config(image_folder))
    assert data.split_sizes == {"train": 24, "validation": 9, "test": 9}
    assert data.test_is_validation
    assert data.class_names == ("class0", "class1", "class2")
    images, labels, positions = collect(data.evaluation_batches("validation", 4))
    assert images.shape == (9, 3, 32, 32) and images.dtype == torch.float32
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert positions.tolist() == list(range(9))


def test_evaluation_is_timms_resize_and_centre_crop(image_folder):
    from torchvision.transforms import functional as F

    data = load(config(image_folder, crop_pct=0.5))
    images, _, _ = next(data.evaluation_batches("test", 1))
    path = sorted((image_folder / "val" / "class0").iterdir())[0]
    image = Image.open(path).convert("RGB")
    image = F.resize(image, 64, F.InterpolationMode.BICUBIC)
    expected = F.normalize(
        F.to_tensor(F.center_crop(image, 32)), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    assert torch.equal(images[0], expected)


def test_own_test_folder(image_folder, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(image_folder, root)
    before = load(config(root)).fingerprint
    shutil.copytree(root / "val", root / "test")
    data = load(config(root, train_images=6))
    assert not data.test_is_validation
    assert data.splits["train"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.fingerprint != before


def test_fingerprint_follows_the_content_not_the_place(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "moved")
    data = load(config(image_folder))
    assert load(config(tmp_path / "moved")).fingerprint == data.fingerprint
    path = next((tmp_path / "moved" / "train" / "class1").iterdir())
    path.write_bytes(path.read_bytes() + b"\0")
    assert load(config(tmp_path / "moved")).fingerprint != data.fingerprint


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_image_is_named(image_folder, tmp_path, workers):
    root = tmp_path / "set"
    shutil.copytree(image_folder, root)
    path = sorted((root / "val" / "class1").iterdir())[1]
    path.write_bytes(path.read_bytes()[:200])
    data = load(config(root, workers=workers))
    with pytest.raises(UserError) as caught:
        list(data.evaluation_batches("test", 4))
    assert str(caught.value).startswith(f"cannot read the image {path}")


@pytest.mark.parametrize("name", ["little.png", "big.tif", "portable.pgm"])
def test_grey_images_of_16_bits_are_scaled(tmp_path, name):
    values = np.array([[0, 128, 129, 257], [25700, 32768, 65406, 65535]], dtype=np.uint16)
    if name == "big.tif":
        Image.frombytes("I;16B", (4, 2), values.astype(">u2").tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(values).save(tmp_path / name)
    image = FileImages(np.array([os.fsencode(tmp_path / name)]), np.array([0])).pil(0)
    expected = [[0, 0, 1, 1], [100, 128, 254, 255]]
    assert image.mode == "RGB" and np.asarray(image)[..., 0].tolist() == expected


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_pixels_of_unknown_range_are_refused(tmp_path, kind, mode):
    path = tmp_path / "measured.tif"
    Image.fromarray(np.full((2, 2), 3, kind)).save(path)
    with pytest.raises(UserError, match=rf"measured\.tif: .*mode {mode}\b.*8 or 16 bits"):
        FileImages(np.array([os.fsencode(path)]), np.array([0])).pil(0)


@pytest.mark.parametrize("target", ["../../train/class0", ".."])
def test_a_link_to_a_folder_above_it_is_refused(image_folder, tmp_path, target):
    shutil.copytree(image_folder, tmp_path / "set")
    (tmp_path / "set/train/class0").rename(tmp_path / "class0")
    (tmp_path / "set/train/class0").symlink_to(tmp_path / "class0")
    assert load(config(tmp_path / "set")).split_sizes["train"] == 24
    loop = tmp_path / "set/train/class1/loop"
    loop.symlink_to(target.replace("class0", "class1"))
    with pytest.raises(UserError, match=f"the link {loop} leads back"):
        load(config(tmp_path / "set"))


def handlers(image):
    """A transform that shows how its process takes SIGINT and SIGTERM."""
    found = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return torch.full((3, 1, 1), float(found == [signal.SIG_IGN, signal.SIG_DFL]))


def test_workers_leave_signals_to_their_parent(image_folder):
    settings = config(image_folder, workers=1)
    images = load(settings).splits["test"]
    with StopRequest().listening(lambda: None):
        ((pixels, _, _),) = transformed_batches(images, handlers, settings, [np.arange(2)])
    assert pixels.all()


def signalled(image):
    """A transform in the midst of which a batch system ends the job."""
    os.kill(os.getpid(), signal.SIGTERM)
    return torch.ones(3, 1, 1)


def test_a_worker_ends_by_a_signal_of_its_parent_alone(image_folder):
    settings = config(image_folder, workers=1)
    images = load(settings).splits["test"]
    batches = transformed_batches(images, signalled, settings, [np.arange(2), np.arange(2)])
    pixels, _, _ = next(batches)
    assert pixels.all()
    (child,) = multiprocessing.active_children()
    with contextlib.suppress(RuntimeError):  # By which the loader says that it has lost one.
        child.terminate()
        child.join(timeout=60)
    assert not child.is_alive()


def test_missing_folders_and_classes(image_folder, tmp_path):
    with pytest.raises(UserError, match=r"no folder .*train, .*val"):
        load(config(tmp_path))
    root = tmp_path / "set"
    shutil.copytree(image_folder, root)
    shutil.move(root / "val" / "class2", root / "val" / "klass2")
    with pytest.raises(UserError, match="different classes: class2, klass2"):
        load(config(root))
    shutil.rmtree(root / "val" / "klass2")
    (root / "val" / "klass2").mkdir()
    with pytest.raises(UserError, match=r"val: .*klass2"):
        load(config(root))
    (root / "train" / "class0" / "broken.png").symlink_to(tmp_path / "nowhere")
    (root / "val" / "klass2").rmdir()
    shutil.copytree(image_folder / "val" / "class2", root / "val" / "class2")
    with pytest.raises(UserError, match=r"broken\.png"):
        load(config(root))
