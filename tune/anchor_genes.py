"""Anchors as a vector of numbers, which a search over continuous numbers can vary.

The vector holds the base size of each level, the number of scales and the steps between them, and
the number of ratios and the ratios; sizes, steps and ratios as logarithms to the base 2. A number
that is not used (a step beyond the last scale) has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from detector.model_config import AnchorConfig

MOST_SCALES, MOST_RATIOS = 4, 5
"""Unless the given anchors have more."""
SMALLER, LARGER = 3.0, 2.0
"""Octaves by which the base size of a level may differ from the given one. From the paper's four
strides this reaches from half a stride, which hits few objects, to 16, more than the heads see.
"""
STEPS = (0.15, 1.5)
"""Octaves from one scale to the next."""


@dataclass(frozen=True)
class AnchorGenes:
    """The vectors around the given anchors."""

    given: AnchorConfig
    ratios: tuple[float, float]
    """The limits of height / width."""
    largest: float
    """Longest side of an object, canvas px. No base size is above it, but for the given ones."""

    @property
    def most_scales(self) -> int:
        return max(MOST_SCALES, len(self.given.scales))

    @property
    def most_ratios(self) -> int:
        return max(MOST_RATIOS, len(self.given.ratios))

    def bounds(self) -> np.ndarray:
        """(genes, 2): the least and the largest number."""
        sizes = np.log2(self.given.base_sizes) + np.log2(min(self.given.scales))
        largest = np.maximum(sizes, np.minimum(sizes + LARGER, np.log2(self.largest)))
        low, high = np.log2(self.ratios)
        return np.array(
            [
                *zip(sizes - SMALLER, largest, strict=True),
                (1, self.most_scales + 0.999),
                *[STEPS] * (self.most_scales - 1),
                (1, self.most_ratios + 0.999),
                *[(low, high)] * self.most_ratios,
            ]
        )

    def encode(self, generator: np.random.Generator) -> np.ndarray:
        """The vector of the given anchors, as far as the bounds allow; unused numbers are drawn."""
        low, high = self.bounds().T
        vector = generator.uniform(low, high)
        sizes, steps, ratios = self._parts(vector)
        scales = np.sort(np.log2(self.given.scales))
        sizes[:] = np.log2(self.given.base_sizes) + scales[0]
        steps[: len(scales)] = (len(scales) + 0.5, *np.diff(scales))
        ratios[: 1 + len(self.given.ratios)] = (
            len(self.given.ratios) + 0.5,
            *np.log2(self.given.ratios),
        )
        return np.clip(vector, low, high)

    def decode(self, vector: np.ndarray) -> AnchorConfig | None:
        """The anchors, in numbers of four digits that one can read and type; None where the model
        would not take them.
        """
        sizes, steps, ratios = self._parts(vector)
        scales = np.cumsum([0.0, *steps[1 : int(steps[0])]])
        try:
            return AnchorConfig(
                strides=self.given.strides,
                base_sizes=_powers(np.sort(sizes)),
                scales=_powers(scales),
                ratios=_powers(np.sort(ratios[1 : 1 + int(ratios[0])])),
                convention=self.given.convention,
            )
        except ValidationError:
            return None

    def _parts(self, vector: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Views: sizes; the number of scales and the steps; the number of ratios and the ratios."""
        levels = len(self.given.base_sizes)
        middle = levels + self.most_scales
        return vector[:levels], vector[levels:middle], vector[middle:]


def _powers(exponents: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.4g}") for value in 2.0**exponents)
