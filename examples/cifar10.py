"""CIFAR-10 with a ResNet-18, in plain Lightning; `configs/cifar10.yaml` adds the callback."""

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.models import resnet18
from torchvision.transforms import v2 as T

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class CIFAR10(L.LightningDataModule):
    def __init__(self, root: str = "data", batch_size: int = 256, num_workers: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()

    def prepare_data(self) -> None:
        for train in (True, False):
            datasets.CIFAR10(self.hparams.root, train=train, download=True)

    def setup(self, stage: str | None = None) -> None:
        to_tensor = [T.ToImage(), T.ToDtype(torch.float32, scale=True), T.Normalize(MEAN, STD)]
        augment = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), *to_tensor])
        self.train_set = datasets.CIFAR10(self.hparams.root, train=True, transform=augment)
        self.val_set = datasets.CIFAR10(self.hparams.root, train=False, transform=T.Compose(to_tensor))

    def train_dataloader(self):
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self):
        return self._loader(self.val_set, shuffle=False)

    def _loader(self, dataset, shuffle: bool):
        workers = self.hparams.num_workers
        return DataLoader(
            dataset,
            batch_size=self.hparams.batch_size,
            shuffle=shuffle,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


class Classifier(L.LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = resnet18(num_classes=10)
        self.net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.net.maxpool = nn.Identity()

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
