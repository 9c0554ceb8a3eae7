"""Experiment trackers: TensorBoard, Weights & Biases and MLflow, through accelerate's classes for them."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.training.errors import DataError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # name of a tracker: what to install


class Trackers:
    """Some trackers as one. A tracker's own settings come from its environment variables."""

    def __init__(self, names: str, stage: str, out: Path, recipe: Mapping[str, Any]) -> None:
        """`names`: separated by commas. TensorBoard and MLflow write below `out` unless told otherwise."""
        wanted = [name.strip() for name in names.split(",") if name.strip()]
        for name in wanted:
            if name not in PACKAGES:
                raise DataError(f"--track {name}: there is no such tracker; use {', '.join(PACKAGES)}.")
            if importlib.util.find_spec(PACKAGES[name]) is None:
                raise DataError(f"--track {name} needs a package that is missing: pip install {PACKAGES[name]}")
        from accelerate import tracking

        self.trackers: list[Any] = []
        for name in wanted:
            if name == "tensorboard":
                self.trackers.append(tracking.TensorBoardTracker(stage, out / "tensorboard"))
            elif name == "wandb":
                self.trackers.append(tracking.WandBTracker(f"tiebreak-{stage}", dir=str(out)))
            else:
                self.trackers.append(tracking.MLflowTracker(f"tiebreak-{stage}", run_name=out.name))
        for tracker in self.trackers:
            tracker.start()
            tracker.store_init_configuration(_flat(recipe))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand on the metrics of a step."""
        for tracker in self.trackers:
            tracker.log(dict(metrics), step=step)

    def finish(self) -> None:
        """Write out what is still held back."""
        for tracker in self.trackers:
            tracker.finish()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, as text where they are not numbers: what all trackers can show."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float) else str(value)
    return flat
