"""FastVim-T compiled by torch.compile against itself run eagerly: forward and training step.

    python benchmarks/compiled.py [--rounds 7] [--threads 2] [--json FILE]

The compiled model must be one graph. Compilation is not timed; both have the same weights.
"""

import copy

import torch
from against_deit import forward, training_step
from timing import arguments, compare, finish, interleave

from fastvim.models import create_model


def main() -> None:
    given = arguments(__doc__, rounds=7)
    torch.manual_seed(0)
    eager = create_model("fastvim_tiny")
    models = {"eager": eager, "compiled": torch.compile(copy.deepcopy(eager), fullgraph=True)}
    images = torch.randn(8, 3, 224, 224)
    results = []
    for title, measure in (("forward", forward), ("training step", training_step)):
        runs = {name: measure(model, images) for name, model in models.items()}
        times = interleave(runs, given.rounds)
        results.append(compare(f"FastVim-T {title}, 224, batch 8", times, "compiled"))
    finish(results, given.json)


if __name__ == "__main__":
    main()
