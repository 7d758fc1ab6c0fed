"""A real analysis of planted failures, and its pictures."""

import torch
from torch import nn

from lightning_failures.analysis.analyse import analyse
from lightning_failures.data.grades import Grades
from lightning_failures.encoders import ModuleEncoder
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.trainer.pictures.classes_and_leaves import browsed_ids, draw_gallery
from lightning_failures.trainer.pictures.sources import EmbeddingTable, PictureInputs, displayed_members

N = 300


class Counting(ModuleEncoder):
    """Counts the forward passes of its module."""

    passes = 0

    def _run(self, prepared):
        self.passes += 1
        return super()._run(prepared)


def plant(folder):
    """Wide images, twice as wide as high; nearly all with a bright bar in the middle fail, and few others."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.rand(N, 3, 16, 32, generator=generator)
    bar = torch.rand(N, generator=generator) < 0.4
    images[bar, :, :, 12:16] = 1.0
    images[:, :, :, :4] = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)  # a green edge that the encoder crops away
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net[0].reset_parameters()
    encoder = Counting(net, "1", image_size=8, name="net")
    failed = bar ^ (torch.rand(N, generator=generator) < 0.1)
    confidence = torch.rand(N, generator=generator)
    grades = Grades(torch.arange(N), torch.zeros(N, dtype=torch.int64), failed.long(), confidence, ("wide", "other"))
    features = encoder.encode_images(images)
    report = analyse(grades, features, features=features, permutations=99)
    store = EmbeddingCache(folder).store("attacks are made once")
    return images, bar, encoder, grades, features, store, report


def inputs(planted, **options):
    images, _bar, encoder, _grades, features, store, report = planted
    members = displayed_members(report, 5)
    given = {
        "images": lambda ids: images[list(ids)],
        "robust": encoder,
        "features": EmbeddingTable(members, features[members]),
        "embeddings": EmbeddingTable(torch.arange(N), features),
        "captions": None,
        "browsed": browsed_ids(report.table, seed=0, limit=20),
        "store": store,
    }
    return PictureInputs(**(given | options))


def draw(planted, worst_k=5, **options):
    return draw_gallery(planted[-1], planted[3], inputs(planted, **options), worst_k=worst_k)


def of_kind(gallery, kind):
    return [picture for picture in gallery.pictures if picture.tag.startswith(kind)]
