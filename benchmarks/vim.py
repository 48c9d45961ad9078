"""Vim-T forward with the kernels of this machine against the same model in plain PyTorch.

python benchmarks/vim.py [--rounds 5] [--threads 2] [--json FILE]
"""

import torch
from timing import arguments, compare, finish, interleave

from fastvim.kernels import use_backend
from fastvim.models import create_model

SIZES = ((224, 8), (512, 2))


def forward(model: torch.nn.Module, images: torch.Tensor, backend: str):
    def run():
        with torch.no_grad(), use_backend(backend):
            model(images)

    return run


def main() -> None:
    given = arguments(__doc__, rounds=5)
    results = []
    for size, batch in SIZES:
        model = create_model("vim_tiny", image_size=size).eval()
        images = torch.randn(batch, 3, size, size)
        runs = {name: forward(model, images, name) for name in ("cpu", "reference")}
        times = interleave(runs, given.rounds)
        results.append(compare(f"Vim-T forward, {size}, batch {batch}", times, "cpu"))
    finish(results, given.json)


if __name__ == "__main__":
    main()
