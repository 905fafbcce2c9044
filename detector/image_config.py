"""Settings of the images that the network sees: canvases and augmentation."""

from __future__ import annotations

from pydantic import Field, model_validator

from detector.config import Section, refuse_unused, shown

CANVAS_STEP = 32
"""Canvas sides are multiples of the stride of C5, so that the pyramid's levels halve exactly; P6
and P7 round up.
"""

SMALLEST_SIDE = 64
"""px of a canvas."""
DEFAULT_CANVAS = (800, 1344)
"""(height, width) px of the paper, where no picture is known."""

_MOST_CANVASES = 3


class CanvasConfig(Section):
    """The fixed image sizes that the network sees. Each image is scaled to the largest size that
    fits, aspect ratio unchanged, and placed at the top left corner.
    """

    height: int | None = Field(
        default=None,
        ge=SMALLEST_SIDE,
        le=4096,
        description=(
            "px, a multiple of 32. Without height, width and shapes a training takes canvases with"
            f" the shape of its pictures, at most {DEFAULT_CANVAS[0]} px by"
            f" {DEFAULT_CANVAS[1]} px and twice the pictures; unset beside width:"
            f" {DEFAULT_CANVAS[0]}"
        ),
    )
    width: int | None = Field(
        default=None,
        ge=SMALLEST_SIDE,
        le=4096,
        description=f"px, a multiple of 32; unset beside height: {DEFAULT_CANVAS[1]}",
    )
    shapes: tuple[tuple[int, int], ...] = Field(
        default=(),
        description=(
            "up to three canvases instead of height and width, each [height,width] in px; an image"
            " goes to the canvas on which it becomes largest, and a batch has one canvas. The"
            " paper's 800 by at most 1333 px is [[800,1088],[800,1344],[1344,800]] with long_side"
            " 1333; empty: only height x width"
        ),
    )
    long_side: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description=(
            "largest length of an image's longer side on its canvas, px (the paper: 1333); unset:"
            " as large as fits"
        ),
    )

    @property
    def canvases(self) -> tuple[tuple[int, int], ...]:
        """All (height, width), px; that of the paper where none is given."""
        height, width = DEFAULT_CANVAS
        return self.shapes or ((self.height or height, self.width or width),)

    @property
    def is_given(self) -> bool:
        """Whether the user has chosen a canvas; else the pictures decide, see `canvas_fit`."""
        return bool(self.shapes or self.height or self.width)

    @model_validator(mode="after")
    def _few_different_canvases(self) -> CanvasConfig:
        if len(set(self.shapes)) != len(self.shapes) or len(self.shapes) > _MOST_CANVASES:
            given = " ".join(f"{height}x{width}" for height, width in self.shapes)
            raise ValueError(
                f"canvas.shapes {given}: must be at most {_MOST_CANVASES} different ones, because"
                " code is compiled for each; remove some"
            )
        return self

    @model_validator(mode="after")
    def _sides_fit_the_pyramid(self) -> CanvasConfig:
        given = {"height": self.height, "width": self.width}
        sides = [(name, side) for name, side in given.items() if side is not None]
        sides += [
            (f"shapes[{i}] {name}", side)
            for i, shape in enumerate(self.shapes)
            for name, side in zip(("height", "width"), shape, strict=True)
        ]
        for name, side in sides:
            if side % CANVAS_STEP:
                raise ValueError(
                    f"canvas.{name} {side}: must be a multiple of {CANVAS_STEP}; the next one is"
                    f" {-(-side // CANVAS_STEP) * CANVAS_STEP}"
                )
            if not SMALLEST_SIDE <= side <= 4096:
                raise ValueError(
                    f"canvas.{name} {side}: must be within 64..4096 px; the paper uses 800 and 1344"
                )
        for height, width in self.canvases:
            if max(height, width) <= SMALLEST_SIDE:
                # With a single cell in P6, oneDNN's bfloat16 weight gradient of P7 reads memory it
                # never wrote: NaN by chance (torch 2.15, AVX512).
                raise ValueError(
                    f"canvas {height}x{width}: one side must be above 64 px, else P6 is a single"
                    " cell; 64x96 is the smallest"
                )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> CanvasConfig:
        if self.shapes:
            given = zip(("height", "width"), (self.height, self.width), DEFAULT_CANVAS, strict=True)
            refuse_unused(
                self,
                "canvas",
                # Files of version 0.1 have both beside the shapes, as they were by default.
                [name for name, side, usual in given if side != usual],
                "beside canvas.shapes, which replace them",
                "set the shapes to []",
            )
        longest = max(map(max, self.canvases))
        if self.long_side is not None and self.long_side >= longest:
            refuse_unused(
                self,
                "canvas",
                ["long_side"],
                f"where no canvas is longer than {longest} px",
                "set it below that",
            )
        return self


class AugmentationConfig(Section):
    """Random changes of a training image, drawn from (seed, epoch, image id) alone."""

    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    vertical_flip: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability of a vertical flip (microscopy, aerial images)",
    )
    scale_min: float = Field(
        default=0.8,
        ge=0.1,
        le=1,
        description=(
            "smallest scale jitter, a factor of the size that fits the canvas; 0.1 with scale_max 2"
            " is large-scale jitter"
        ),
    )
    scale_max: float = Field(
        default=1.25,
        ge=1,
        le=4,
        description=(
            "largest scale jitter, a factor of the size that fits the canvas; the part beyond the"
            " canvas is cropped at random"
        ),
    )
    short_sides: tuple[int, int] | None = Field(
        default=None,
        description=(
            "LOW,HIGH px: instead of the scale jitter, the length of the shorter side is drawn"
            " between them, limited by what fits the canvas (the paper: 640,800); unset: off"
        ),
    )
    min_visible: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description=(
            "an object becomes an ignore region when a crop leaves less than this share of its area"
        ),
    )
    iou_crop: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "probability of SSD's crop: a window that has at least a minimum IoU with an object"
        ),
    )
    iou_minima: tuple[float, ...] = Field(
        default=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9),
        min_length=1,
        description="the minimum IoU of SSD's crop is drawn from these, each 0..1",
    )
    photometric: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "probability of photometric jitter; brightness, contrast, saturation and hue are its"
            " strengths (defaults of SSD)"
        ),
    )
    brightness: float = Field(
        default=0.125, ge=0, le=1, description="largest change of the brightness, a share of it"
    )
    contrast: float = Field(
        default=0.5, ge=0, le=1, description="largest change of the contrast, a share of it"
    )
    saturation: float = Field(
        default=0.5, ge=0, le=1, description="largest change of the saturation, a share of it"
    )
    hue: float = Field(
        default=0.05,
        ge=0,
        le=0.5,
        description=(
            "largest change of the hue, a share of the colour circle; the slowest of the four"
        ),
    )
    mosaic: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability that windows of four images of the batch share one canvas",
    )
    mixup: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="probability that an image is blended with the next image of the batch",
    )

    @model_validator(mode="after")
    def _ranges_rise(self) -> AugmentationConfig:
        if self.short_sides is not None and not 1 <= self.short_sides[0] <= self.short_sides[1]:
            raise ValueError(
                f"augmentation.short_sides {shown(self.short_sides)}: must be LOW,HIGH px with 1 <="
                " LOW <= HIGH; the paper uses 640,800"
            )
        if not 0 <= min(self.iou_minima) <= max(self.iou_minima) <= 1:
            given = ",".join(map(str, self.iou_minima))
            raise ValueError(
                f"augmentation.iou_minima {given}: must be within 0..1, as an IoU is; SSD uses"
                " 0,0.1,0.3,0.5,0.7,0.9"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> AugmentationConfig:
        if self.short_sides is not None:
            refuse_unused(
                self,
                "augmentation",
                ("scale_min", "scale_max"),
                "beside augmentation.short_sides",
                "remove short_sides",
            )
        unused = {
            "iou_crop": ("iou_minima",),
            "photometric": ("brightness", "contrast", "saturation", "hue"),
        }
        for name, names in unused.items():
            if not getattr(self, name):
                refuse_unused(
                    self,
                    "augmentation",
                    names,
                    f"where augmentation.{name} is 0",
                    "give it a probability",
                )
        return self
