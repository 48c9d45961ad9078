"""Settings of the detector."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from fastvim.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Settings of the detector. Counts are logged values, heights are robust deviations.

    threshold: height that makes an outlier of a value when the noise has an ordinary tail.
    highest: bound of the threshold as it follows the tail of the noise.
    tail_power, tail_gain: how steeply the threshold follows the tail, and how fast it is learnt.
    level_memory, noise_memory: values that the trend and the noise scale remember.
    calm, calm_values: an episode is over after `calm_values` values in a row below `calm`.
    patience: values after which an excursion is the new level.
    young: values before anything but NaN and infinity is judged.
    """

    threshold: float = 7.3
    highest: float = 20.0
    tail_power: float = 3.5
    tail_gain: float = 0.02
    level_memory: int = 32
    noise_memory: int = 128
    calm: float = 2.5
    calm_values: int = 3
    patience: int = 200
    young: int = 12

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not value > 0:
                raise UserError(f"{name} must be above 0, got {value!r}")
        if not self.calm < self.threshold <= self.highest:
            raise UserError(
                "need calm < threshold <= highest, got "
                f"{self.calm} / {self.threshold} / {self.highest}"
            )
        if self.patience < 4:
            raise UserError(f"patience must be at least 4, got {self.patience!r}")
