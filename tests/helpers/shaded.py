"""A task for command lines: configs that YAML can name, and a model whose pattern can be fixed."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from lightning_failures.callback import AdvancedOptions, FailureModes
from tests.helpers.toy import ColourEncoder, Images, OracleClassifier


class Shaded(L.LightningDataModule):
    """Images of which half of each class are dark."""

    def __init__(self, size: int = 400, seed: int = 3) -> None:
        super().__init__()
        self.size, self.seed = size, seed

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Images(self.size, seed=self.seed), batch_size=40)

    train_dataloader = test_dataloader = predict_dataloader = val_dataloader


class ShadedClassifier(OracleClassifier):
    """Errs on most dark images; not if it is fixed, nor from some epoch on."""

    def __init__(self, fixed: bool = False, fixed_from: int = 99) -> None:
        super().__init__()
        self.fixed, self.fixed_from = fixed, fixed_from

    def _guess(self, pixels):
        if self.fixed or self.current_epoch >= self.fixed_from:
            pixels = pixels.clone()
            pixels[:, 1:] += 1.0  # bright
        return super()._guess(pixels)


class ColourModes(FailureModes):
    """The callback with an encoder of colours of some name."""

    def __init__(self, colours: str, cache: str) -> None:
        advanced = AdvancedOptions(permutations=99, cache_folder=cache)
        super().__init__(encoder=ColourEncoder(colours), captions=None, pictures=False, advanced=advanced)


CONFIG = """
seed_everything: 0
trainer:
  accelerator: cpu
  max_epochs: {epochs}
  logger: {{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {folder}, name: null}}}}
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  callbacks:
    - {{class_path: tests.helpers.shaded.ColourModes, init_args: {{colours: {encoder}, cache: {folder}/cache}}}}
model: {{class_path: tests.helpers.shaded.ShadedClassifier}}
data: {{class_path: tests.helpers.shaded.Shaded}}
"""


def config(folder: Path, *, epochs: int = 1, encoder: str = "colours") -> str:
    """Write a config and return its path; runs are version_0, version_1, ... in ``folder``."""
    path = folder / f"{encoder}.yaml"
    path.write_text(CONFIG.format(folder=folder, epochs=epochs, encoder=encoder))
    return str(path)
