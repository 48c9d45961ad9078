"""The `data` section of a run: which set, its size, and the augmentation, in timm's names."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fastvim.data.sets import SETS, SetFacts
from fastvim.errors import nearest

Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[float, float], Field(strict=False)]  # YAML and JSON have lists only

# timm skips or asserts on a section that it cannot read (`rand-mx`), so each is checked here.
_NUMBER = r"\d+(\.\d+)?"
_AUTO_AUGMENT_SECTIONS = {
    "rand": rf"m\d+|n\d+|p(0(\.\d+)?|1)|mstd{_NUMBER}|mmax\d+|inc[01]|t(weights|3aw?)",
    "augmix": rf"m\d+|w[1-9]\d*|d[1-9]\d*|a{_NUMBER}|b[01]|mstd{_NUMBER}",
} | dict.fromkeys(("v0", "v0r", "original", "originalr", "3a"), rf"mstd{_NUMBER}")


class DataConfig(BaseModel):
    """A data set and how training draws from it.

    `image_size`, `channels`, `scale`, `padding`, `crop_pct`, `interpolation` and
    `validation_fraction` have defaults that depend on the set (`fastvim.data.sets`); they are
    filled in here, so a resolved configuration states them all.

    - `root`: the folder with the files; without it FASTVIM_DATA, $XDG_DATA_HOME/fastvim
      (~/.local/share/fastvim) and /usr/share/datasets are searched. `imagefolder` needs it.
    - `channels`: 3 repeats grey images; colour sets have 3.
    - `scale`, `ratio`: random resized crop. With `scale` null, images of one size are padded by
      `padding` pixels with black and cropped back.
    - `color_jitter` is ignored by timm where `auto_augment` is given.
    - `crop_pct`: evaluation resizes to image_size / crop_pct and crops the centre.
    - `validation_fraction`: the share of the training images held out, balanced over classes,
      where the set has no validation split.
    - `train_images`, `validation_images`, `test_images`: use only that many, balanced.
    - `workers`: processes that decode and transform images; never changes a result.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str = "fashion-mnist-subset"
    root: str | None = None
    image_size: int = Field(ge=1, le=16384)
    channels: Literal[1, 3]
    interpolation: Literal["bilinear", "bicubic"]
    scale: Range | None = None
    ratio: Range = (3 / 4, 4 / 3)
    padding: int = Field(ge=0, le=1024)
    hflip: Probability = 0.5
    color_jitter: float = Field(default=0.0, ge=0, le=1)
    auto_augment: str | None = None
    re_prob: Probability = 0.0
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    crop_pct: float = Field(gt=0, le=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    mixup_prob: Probability = 1.0
    mixup_switch_prob: Probability = 0.5
    validation_fraction: float | None = Field(default=None, gt=0, lt=1)
    train_images: Count | None = None
    validation_images: Count | None = None
    test_images: Count | None = None
    workers: int = Field(default=0, ge=0, le=1024)

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults_of_the_set(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("name", "fashion-mnist-subset")
        if not isinstance(name, str) or name not in SETS:
            raise ValueError(
                f"name: unknown data set {name!r}{nearest(name, SETS)}; one of {', '.join(SETS)}"
            )
        facts = SETS[name]
        defaults: dict[str, Any] = {
            "image_size": facts.image_size,
            "channels": facts.channels,
            "interpolation": facts.interpolation,
            "scale": facts.scale,
            "crop_pct": facts.crop_pct,
            "validation_fraction": None if facts.has_validation else 0.1,
        }
        given = {key: value for key, value in values.items() if value is not None}
        filled = {**values, **{k: v for k, v in defaults.items() if k not in given}}
        if "padding" not in given:
            filled["padding"] = 0 if filled["scale"] is not None else facts.padding
        return filled

    @field_validator("scale", "ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 < value[0] <= value[1]:
            raise ValueError(f"must be [low, high] with 0 < low <= high, not {list(value)}")
        return value

    @field_validator("scale")
    @classmethod
    def _at_most_the_image(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[1] > 1:
            raise ValueError(f"is a share of the image's area, at most 1, not {value[1]}")
        return value

    @field_validator("auto_augment")
    @classmethod
    def _known_auto_augment(cls, value: str | None) -> str | None:
        if value is None:
            return None
        policy, *sections = value.split("-")
        if policy not in _AUTO_AUGMENT_SECTIONS:
            raise ValueError(
                f"unknown policy {policy!r} in {value!r}{nearest(policy, _AUTO_AUGMENT_SECTIONS)}; "
                f"one of {', '.join(_AUTO_AUGMENT_SECTIONS)}"
            )
        for section in sections:
            if not re.fullmatch(_AUTO_AUGMENT_SECTIONS[policy], section):
                raise ValueError(
                    f"cannot read {section!r} in {value!r}; an example is rand-m9-mstd0.5-inc1"
                )
        return value

    @model_validator(mode="after")
    def _fits_the_set(self) -> "DataConfig":
        facts = self.facts
        if self.channels < facts.channels:
            raise ValueError(f"channels: {self.name} has colour images, channels must be 3")
        if self.padding and self.scale is not None:
            raise ValueError(
                f"padding: {self.padding} has no effect with a random resized crop "
                f"(scale {list(self.scale)}); set padding to 0 or scale to null"
            )
        if not facts.in_memory and self.root is None:
            raise ValueError(f"root: {self.name} needs data.root, the folder with train and val")
        if self.name == "fashion-mnist-subset" and self.root is not None:
            raise ValueError(
                "root: fashion-mnist-subset is read from the package; "
                "for the whole set in a folder use name fashion-mnist"
            )
        if facts.has_validation and self.validation_fraction is not None:
            raise ValueError(f"validation_fraction: {self.name} has its own validation images")
        return self

    @property
    def facts(self) -> SetFacts:
        """What is fixed about the set; `facts.num_classes` is None for `imagefolder`."""
        return SETS[self.name]

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixels in 0..1; `channels` values."""
        return self.facts.mean * (self.channels // self.facts.channels)

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, of pixels in 0..1; `channels` values."""
        return self.facts.std * (self.channels // self.facts.channels)
