"""Time of the masked autoencoder's encoder, at mask ratio 0.75 against 0, forward and backward.

    python benchmarks/masked_encoder.py [--rounds 5] [--threads 2] [--json FILE]
        [--model fastvim_base] [--depth 4] [--batch 8]

All blocks take the same time, so a few of them are enough.
"""

from collections.abc import Callable

import torch
from timing import arguments, compare, finish, interleave

from fastvim.kernels import backends
from fastvim.models import resolve_config
from fastvim.models.config import MaskingConfig
from fastvim.models.masked_autoencoder import MaskedAutoencoder

OURS = "mask ratio 0.75"


def encoding(model: MaskedAutoencoder, images, noise, backward: bool) -> Callable[[], None]:
    """One encoding of `images`, with the gradients of all weights or without."""
    kept = model.kept_places(noise)

    def run() -> None:
        model.zero_grad()  # As a training step, whose gradients are not added to earlier ones.
        with torch.set_grad_enabled(backward):
            tokens = model.encode(images, kept)
            if backward:
                tokens.sum().backward()
        if images.is_cuda:
            torch.cuda.synchronize()

    return run


def main() -> None:
    """Measure and print."""
    given = arguments(__doc__, rounds=5, model="fastvim_base", depth=4, batch=8)
    config = resolve_config(given.model, {"depth": given.depth})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(given.batch, config.in_channels, *config.image_size, device=device)
    models = {
        name: MaskedAutoencoder(config, MaskingConfig(mask_ratio=ratio)).to(device)
        for name, ratio in ((OURS, 0.75), ("mask ratio 0", 0.0))
    }
    noise = torch.rand(given.batch, len(models[OURS].grid), device=device)
    what = f"{given.model}, {given.depth} blocks, batch {given.batch}"
    what += f", {backends.choose(device, torch.float32)} on {device}"
    results = []
    for title, backward in (("forward", False), ("forward and backward", True)):
        runs = {name: encoding(model, images, noise, backward) for name, model in models.items()}
        results.append(compare(f"{what}, {title}", interleave(runs, given.rounds), OURS))
    finish(results, given.json)


if __name__ == "__main__":
    main()
