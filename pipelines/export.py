"""Export a registered model as an ONNX file with anchors, decoding and NMS inside, checked in
onnxruntime; on request also in 8-bit integers.

    retinaray export --model models:/cells@champion --output exported/cells.onnx
    retinaray export --model models:/cells/3 --output cells.onnx --int8 true --data data/val
"""

from __future__ import annotations

from pydantic import Field, model_validator

from cluster.tracking.config import TrackingConfig
from detector.config import Section
from pipelines.command_line import run_verb

CALIBRATION = 100


class ExportConfig(Section):
    """The export of a registered model."""

    model: str = Field(description="registered model: models:/NAME@champion or models:/NAME/3")
    output: str = Field(
        min_length=1,
        description=(
            "file that is written, NAME.onnx: a local path or s3://bucket/key; NAME.json beside it"
            " describes it"
        ),
    )
    int8: bool = Field(
        default=False,
        description=(
            "also write NAME.int8.onnx with convolutions in 8-bit integers, and say what it costs"
            " in AP and gives in speed; needs --data"
        ),
    )
    data: str | None = Field(
        default=None,
        description=(
            "shard set for int8; also that of the pictures on which the file is checked, unset: the"
            " example pictures of the model"
        ),
    )
    calibration: int = Field(
        default=CALIBRATION,
        ge=1,
        le=100_000,
        description="images of data whose activations give the ranges of the 8-bit integers",
    )
    storage: str = Field(default="runs", description="storage root, which has the embedded MLflow")
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _int8_has_data(self) -> ExportConfig:
        if self.int8 and self.data is None:
            raise ValueError("int8 true: needs --data, a shard set with objects; give one")
        if not self.int8 and self.calibration != CALIBRATION:
            raise ValueError(
                f"calibration {self.calibration}: does nothing without --int8 true; give both"
            )
        return self


def main(config: ExportConfig) -> None:
    from pipelines.export_run import export_run

    exported = export_run(
        config.model,
        config.output,
        data=config.data,
        calibration=config.calibration if config.int8 else None,
        tracking=config.tracking,
        storage=config.storage,
    )
    print("\n".join(exported.lines()))


def run() -> None:
    """The verb, with what was typed."""
    run_verb(
        ExportConfig,
        main,
        resumes=False,
        description=__doc__,
    )


if __name__ == "__main__":
    run()
