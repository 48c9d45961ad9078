"""Time of the masked autoencoder's encoder for one image, at mask ratio 0.75 and at 0.

    OMP_NUM_THREADS=2 python benchmarks/masked_encoder.py [--backward]

Both ratios are timed in turn, so that whatever else the machine does falls on both; the ratio is
of the medians.
"""

import argparse
import statistics
import time

import torch

from fastvim.kernels import backends
from fastvim.models import resolve_config
from fastvim.models.config import MaskingConfig
from fastvim.models.masked_autoencoder import MaskedAutoencoder

RATIOS = (0.0, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fastvim_base")
    parser.add_argument("--depth", type=int, default=4, help="blocks; all take the same time")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backward", action="store_true", help="time the gradients too")
    options = parser.parse_args()
    config = resolve_config(options.model, {"depth": options.depth})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randn(options.batch, config.in_channels, *config.image_size, device=device)
    models = {
        ratio: MaskedAutoencoder(config, MaskingConfig(mask_ratio=ratio)).to(device)
        for ratio in RATIOS
    }
    noise = torch.rand(options.batch, len(models[0.0].grid), device=device)
    times = {ratio: [] for ratio in RATIOS}
    for repeat in range(options.repeats + 1):
        for ratio, model in models.items():
            seconds = timed(model, images, model.kept_places(noise), options.backward)
            if repeat:  # The first fills caches.
                times[ratio].append(seconds / options.batch)
    medians = {ratio: statistics.median(values) for ratio, values in times.items()}
    what = "forward and backward" if options.backward else "forward"
    backend = backends.choose(device, torch.float32)
    print(f"{options.model}, {options.depth} blocks, {what}, {backend}, {device}")
    for ratio, median in medians.items():
        tokens = MaskingConfig(mask_ratio=ratio).kept_tokens(noise.shape[1])
        spread = f"{1e3 * min(times[ratio]):.2f} to {1e3 * max(times[ratio]):.2f}"
        print(f"mask ratio {ratio:4}: {tokens:4} tokens, {1e3 * median:.2f} ms an image ({spread})")
    print(f"{medians[0.0] / medians[0.75]:.2f} times faster")


def timed(model: MaskedAutoencoder, images, kept, backward: bool) -> float:
    """Seconds of one encoding of `images`."""
    model.zero_grad()  # As a training step, whose gradients are not added to earlier ones.
    began = time.perf_counter()
    with torch.set_grad_enabled(backward):
        tokens = model.encode(images, kept)
        if backward:
            tokens.sum().backward()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
