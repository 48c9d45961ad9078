"""`fastvim stability threshold`: bodies of several widths and depths, with and without the norm.

The runs are an ordinary study, as those of `fastvim stability`: `stability.yaml` and the run store.
"""

from dataclasses import dataclass
from typing import Literal

from fastvim.experiments.stability import BACKBONES, FACTORS, Fit, log_every, variant_name

Body = tuple[int, int]
"""Width (d_model) and depth of a model."""

# What is varied -> (width, depth) of each body. Proxies whose step takes some milliseconds, and
# the published widths and depths from S to B.
BODIES: dict[str, dict[str, tuple[Body, ...]]] = {
    "quick": {
        "size": tuple((width, depth) for depth in (2, 4, 8) for width in (16, 48, 144)),
        "width": tuple((width, 4) for width in (16, 32, 64, 128, 256)),
        "depth": tuple((48, depth) for depth in (1, 2, 4, 8, 16)),
    },
    "paper": {
        "size": tuple((width, depth) for depth in (12, 24) for width in (384, 576, 768)),
        "width": tuple((width, 24) for width in (384, 480, 576, 672, 768)),
        "depth": tuple((384, depth) for depth in (12, 24, 36, 48)),
    },
}
LADDERS = {"quick": (4.0, 16.0, 64.0), "paper": (1.0, 2.0, 4.0)}
MINUTES = {"quick": 9.0, "paper": None}
# The recipe of small models on small images, which `fastvim stability` takes for them too.
QUICK_LR, PAPER_LR = 2e-3, 1e-3


@dataclass(frozen=True)
class ThresholdRequest:
    """What was asked for. `ladder` are multiples of the recipe's learning rate.

    `minutes` is None where the recipe says how long a run is.
    """

    vary: Literal["size", "width", "depth"]
    profile: Literal["quick", "paper"] = "quick"
    backbones: tuple[str, ...] = ("vim",)
    ladder: tuple[float, ...] = LADDERS["quick"]
    seeds: int = 1
    minutes: float | None = MINUTES["quick"]
    sets: tuple[str, ...] = ()

    @property
    def bodies(self) -> tuple[Body, ...]:
        """Width and depth of every model."""
        return BODIES[self.profile][self.vary]

    def groups(self) -> dict[str, dict]:
        """Variant without its learning rate -> its settings: `vim-without-w48-d4`, ..."""
        return {
            group_name(backbone, norm, body): {
                **BACKBONES[backbone],
                **settings,
                "model.d_model": body[0],
                "model.depth": body[1],
            }
            for backbone in self.backbones
            for body in self.bodies
            for norm, settings in FACTORS["norm"].items()
        }

    def document(self, fit: Fit) -> dict:
        """The experiment file as a mapping."""
        lr = PAPER_LR if self.profile == "paper" else QUICK_LR
        variants, baselines = {}, {}
        for group, settings in self.groups().items():
            for multiple in fit.ladder:
                name = variant_name(group, multiple)
                variants[name] = {**settings, "training.lr": float(f"{lr * multiple:.6g}")}
                if "-without-" in group:
                    baselines[name] = name.replace("-without-", "-with-")
        base = _paper() if self.profile == "paper" else _quick(fit.steps)
        return {
            "name": "stability-threshold",
            "question": f"From which {self.vary} on is training unstable, with and without the "
            "post-SSM norm?",
            "metric": "loss",
            "seeds": fit.seeds,
            "base": {"task": "classification", **base},
            "variants": variants,
            "baseline": baselines,
        }


def group_name(backbone: str, norm: str, body: Body) -> str:
    """`vim-without-w48-d4`."""
    return f"{backbone}-{norm}-w{body[0]}-d{body[1]}"


def _quick(steps: int) -> dict:
    return {
        "data": {"name": "fashion-mnist-subset", "validation_images": 50, "test_images": 50},
        "model": {"name": "fastvim_pico", "patch_size": 7},
        "training": {
            "optimizer": "adamw",
            "batch_size": 16,
            "min_lr": 1e-6,
            "weight_decay": 0.05,
            # More epochs than the steps need: the cap ends the run.
            "epochs": 1000,
            "steps": steps,
            "warmup_epochs": 100,
            "eval_every": 1000,
            "checkpoint_every": 500,
            "log_every": log_every(steps),
        },
    }


def _paper() -> dict:
    """The published supervised recipe; the bodies differ, so drop path stays out."""
    return {
        "data": {
            "name": "imagefolder",
            "root": "imagenet",
            "image_size": 224,
            "interpolation": "bicubic",
            "scale": [0.08, 1.0],
            "hflip": 0.5,
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "color_jitter": 0.3,
            "re_prob": 0.25,
            "re_mode": "pixel",
            "crop_pct": 0.875,
            "mixup": 0.8,
            "cutmix": 1.0,
            "mixup_switch_prob": 0.5,
        },
        "model": {"name": "fastvim_small", "patch_size": 16, "num_classes": 1000},
        "training": {
            "optimizer": "adamw",
            "batch_size": 1024,
            "min_lr": 1e-5,
            "weight_decay": 0.05,
            "epochs": 300,
            "warmup_epochs": 5,
            "warmup_lr": 1e-6,
            "recorder": True,
        },
    }
