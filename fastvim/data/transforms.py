"""timm's transforms for one image, and loaders that apply them with repeatable draws."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fastvim.data.config import DataConfig
from fastvim.data.draws import Stream, seeded_globals
from fastvim.data.images import Images
from fastvim.errors import UserError

Batch = tuple[Tensor, Tensor, Tensor]
Transform = Callable[[Image.Image], Tensor]


def train_transform(config: DataConfig) -> Transform:
    """RGB image to a normalised, augmented (3, image_size, image_size) float32 tensor.

    Where `config.scale` is None, which only sets of one image size allow, a padded crop replaces
    timm's random resized crop.
    """
    from timm.data import create_transform
    from timm.data.transforms import str_to_interp_mode
    from torchvision import transforms

    stages = create_transform(
        config.image_size,
        is_training=True,
        scale=config.scale,
        ratio=config.ratio,
        hflip=config.hflip,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment,
        interpolation=config.interpolation,
        mean=_rgb(config.mean),
        std=_rgb(config.std),
        re_prob=config.re_prob,
        re_mode=config.re_mode,
        separate=True,
    )
    if config.scale is None:
        stages[0].transforms[0] = transforms.Compose(
            [
                transforms.RandomCrop(config.facts.image_size, padding=config.padding),
                transforms.Resize(
                    (config.image_size, config.image_size),
                    str_to_interp_mode(config.interpolation),
                ),
            ]
        )
    for augmentation in stages[1].transforms:
        _posterize_to_zero_bits(augmentation)
    return transforms.Compose(stages)


def _posterize_to_zero_bits(augmentation: object) -> None:
    """Let timm's strongest posterisation, to 0 bits, give black as it was meant to: Pillow 13
    refuses it, which would end a run with the published recipe at a random image."""
    policy = getattr(augmentation, "policy", [])
    for operation in getattr(augmentation, "ops", None) or [op for ops in policy for op in ops]:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **_unused: object) -> Image.Image:
    mask = 256 - 2 ** (8 - min(bits_to_keep, 8))
    return image.point([value & mask for value in range(256)] * len(image.getbands()))


def evaluation_transform(config: DataConfig) -> Transform:
    """RGB image to the normalised centre crop, (3, image_size, image_size) float32."""
    from timm.data import create_transform

    return create_transform(
        config.image_size,
        is_training=False,
        interpolation=config.interpolation,
        mean=_rgb(config.mean),
        std=_rgb(config.std),
        crop_pct=config.crop_pct,
    )


def _rgb(values: tuple[float, ...]) -> tuple[float, ...]:
    return values * (3 // len(values))


class _Transformed(TorchDataset):
    """One split under a transform. An error that is the user's is returned, not raised: raised in
    a worker it would reach the user with the worker's traceback in its message."""

    def __init__(
        self,
        images: Images,
        transform: Transform,
        channels: int,
        draws: tuple[int, int] | None,
    ):
        self._images, self._transform, self._channels = images, transform, channels
        self._draws = draws

    def __getitem__(self, position: int) -> tuple[Tensor, int, int] | UserError:
        try:
            image = self._images.pil(position)
        except UserError as error:
            return error
        if self._draws is None:
            pixels = self._transform(image)
        else:
            with seeded_globals(*self._draws, Stream.TRANSFORM, position):
                pixels = self._transform(image)
        # A grey image was repeated for timm; its channels are still the same, one is enough.
        return pixels[: self._channels], int(self._images.labels[position]), position


def _collate(samples: list) -> Batch | UserError:
    failed = next((sample for sample in samples if isinstance(sample, UserError)), None)
    if failed is not None:
        return failed
    pixels, labels, positions = zip(*samples, strict=True)
    return torch.stack(pixels), torch.tensor(labels), torch.tensor(positions)


def _leave_stopping_to_the_parent(worker: int) -> None:
    """A forked worker has the run's own handlers, and Ctrl-C reaches it too: it would say once
    more that the run stops, and at a second one die in the midst of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # By which the loader ends a worker that hangs.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_says, daemon=True).start()


def _end_when_the_parent_says() -> None:
    """A batch system sends SIGTERM to every process of a job; a worker that dies of it would fail
    the run in the midst of a step, which its own process ends and saves."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(128 + signal.SIGTERM)


def transformed_batches(
    images: Images,
    transform: Transform,
    config: DataConfig,
    chunks: Sequence[np.ndarray],
    draws: tuple[int, int] | None = None,
) -> Iterator[Batch]:
    """A batch (images, labels, positions) for every array of positions in `chunks`.

    `draws` is (seed, epoch) for random transforms. Raises UserError naming a damaged image.
    """
    loader = DataLoader(
        _Transformed(images, transform, config.channels, draws),
        batch_sampler=(chunk.tolist() for chunk in chunks),
        num_workers=config.workers,
        collate_fn=_collate,
        # Without one of its own the loader would draw from torch's global generator.
        generator=torch.Generator(),
        worker_init_fn=_leave_stopping_to_the_parent,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
