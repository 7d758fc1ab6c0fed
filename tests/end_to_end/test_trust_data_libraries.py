"""Datasets of Hugging Face `datasets`, webdataset and litdata: names, columns, ids, normalisation and pictures.

Stand-ins have the form of the real classes; where a library is installed, the same tests run with it.
"""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_failures import BatchRecord
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
from lightning_failures.trainer.example_ids import hashed_names
from tests.helpers.toy import Classifier, Images, OracleClassifier, callback, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:.*Your `IterableDataset` has `__len__` defined.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Cannot (locate reference to|pickle) <class"),  # dill, of pyarrow's classes
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NAMES = ["crane", "plane", "train", "drain"]
SIZE = 160
NORMALIZATION = ([0.5], [0.25])


class ReadsKeys(OracleClassifier):
    """A module that looks its images up in a mapping, or takes the first of a tuple."""

    image_key = "image"

    def images_of(self, batch):
        return batch[self.image_key] if isinstance(batch, dict) else batch[0]

    def training_step(self, batch, batch_idx):
        return (self(self.images_of(batch)) * self.net[1].bias).sum()

    def validation_step(self, batch, batch_idx):
        self(self.images_of(batch))


def reading(key):
    module = ReadsKeys()
    module.image_key = key
    return module


# -- Hugging Face ------------------------------------------------------------------------------------------------------


class ClassLabel:
    def __init__(self, names):
        self.names = names


class ImageFeature:
    pass


ImageFeature.__name__ = "Image"


class Value:
    dtype = "int64"


class Table:
    """The part of ``datasets.Dataset`` that matters: typed columns, ``select``, ``with_transform``, ``with_format``."""

    def __init__(self, columns, features, rows=None, transform=None):
        self.columns, self.features, self.transform_of_rows = columns, features, transform
        self.rows = list(range(SIZE)) if rows is None else rows

    @property
    def column_names(self):
        return list(self.columns)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        if isinstance(key, str):
            if self.transform_of_rows is not None:
                raise KeyError(key)
            return [self.columns[key][row] for row in self.rows]
        row = self.rows[key]
        example = {name: column[row] for name, column in self.columns.items()}
        if self.transform_of_rows is None:
            return example
        changed = self.transform_of_rows({name: [value] for name, value in example.items()})
        return {name: values[0] for name, values in changed.items()}

    def select(self, rows):
        return Table(self.columns, self.features, [self.rows[i] for i in rows], self.transform_of_rows)

    def with_transform(self, transform):
        return Table(self.columns, self.features, self.rows, transform)

    def with_format(self, _kind):
        return Table(self.columns, self.features, self.rows)


def pixels_of(size=SIZE, **options):
    data = Images(size, **options)
    return (data.images * 255).round().to(torch.uint8), data.labels


def stand_in(image="image", label="label", **columns):
    pixels, labels = pixels_of()
    features = {image: ImageFeature(), label: ClassLabel(NAMES)} | {name: Value() for name in columns}
    return Table({image: list(pixels), label: labels.tolist()} | columns, features)


def real(image="image", label="label", **columns):
    datasets = pytest.importorskip("datasets")
    pixels, labels = pixels_of()
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=NAMES)}
    features |= {name: datasets.Value("int64") for name in columns}
    pictures = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]
    types = datasets.Features(features)
    rows = types.encode_batch({image: pictures, label: labels.tolist()} | columns)
    table = pytest.importorskip("pyarrow").Table.from_pydict(rows, schema=types.arrow_schema)
    # a fingerprint of its own, because that of the rows needs a dill that knows the installed pyarrow
    return datasets.Dataset(table, info=datasets.DatasetInfo(features=types), fingerprint="rows")


def as_float(image):
    if not isinstance(image, torch.Tensor):
        image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return image.float() / 255


def as_tutorials_do(image="image", out="pixel_values", normalise=True):
    """Return the function of the tutorials: it normalises, renames the images, and keeps the other columns."""

    def transform(examples):
        floats = [as_float(one) for one in examples[image]]
        kept = {name: values for name, values in examples.items() if name != image}
        return {out: [(one - 0.5) / 0.25 if normalise else one for one in floats]} | kept

    return transform


BOTH = pytest.mark.parametrize("make", [stand_in, real])


def validated(tmp_path, data, module, **options):
    failures = callback(**options)
    source = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=16)
    trainer(tmp_path, failures).validate(module, source, verbose=False)
    return failures.last_report


def expected_accuracy():
    pixels, labels = pixels_of()
    guess = OracleClassifier()((pixels.float() / 255 - 0.5) / 0.25).argmax(1)
    return float((guess == labels).double().mean())


@BOTH
def test_hugging_face__names_and_normalisation(tmp_path, make):
    data = make().with_transform(as_tutorials_do())
    report = validated(tmp_path, data, reading("pixel_values"), normalization=NORMALIZATION)
    assert [entry.name for entry in report.classes] == NAMES
    assert report.accuracy == pytest.approx(expected_accuracy())
    assert report.table.ids.tolist() == list(range(SIZE))
    assert any(entry.cv_score is not None for entry in report.classes)


@BOTH
def test_hugging_face__through_select(tmp_path, make):
    rows = [*range(0, SIZE, 2), 1, 5, 9]
    data = make().with_transform(as_tutorials_do()).select(rows)
    report = validated(tmp_path, data, reading("pixel_values"), normalization=NORMALIZATION)
    assert [entry.name for entry in report.classes] == NAMES
    assert report.examples == len(rows)


@BOTH
@pytest.mark.parametrize(
    ("image", "label", "extra"),
    [
        ("img", "fine_label", {"coarse_label": [0] * SIZE}),
        ("photo", "species", {"y": list(range(SIZE)), "x": list(range(SIZE))}),
        ("scan", "finding", {}),
    ],
)
def test_hugging_face__columns_by_name_or_type(tmp_path, make, image, label, extra):
    data = make(image, label, **extra).with_transform(as_tutorials_do(image, out=image))
    report = validated(tmp_path, data, reading(image), normalization=NORMALIZATION)
    assert [entry.name for entry in report.classes] == NAMES
    assert report.accuracy == pytest.approx(expected_accuracy())


@BOTH
def test_hugging_face__columns_are_metadata_and_groups(tmp_path, make):
    site = [row % 3 for row in range(SIZE)]
    data = make(site=site).with_transform(as_tutorials_do()).select(list(range(100)))
    report = validated(
        tmp_path,
        data,
        reading("pixel_values"),
        normalization=NORMALIZATION,
        metadata=("site",),
        groups_from="site",
        permutations=0,
    )
    assert report.examples == 100
    assert {row.attribute for entry in report.classes for row in entry.enrichment} == {"site"}


@BOTH
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_hugging_face__a_normalisation_that_cannot_be_seen_is_an_error_in_the_sanity_check(tmp_path, make, batch_size):
    data = make().with_transform(as_tutorials_do())
    failures = callback(on_error="warn")
    with pytest.raises(ConfigurationError, match=r"normalization=\(mean, std\)"):
        trainer(tmp_path, failures).fit(
            reading("pixel_values"), DataLoader(data, batch_size=16), DataLoader(data, batch_size=batch_size)
        )
    validated(
        tmp_path, make().with_transform(as_tutorials_do(normalise=False)), reading("pixel_values"), permutations=0
    )


@BOTH
def test_hugging_face__typed_columns_are_read_outside_of_the_loop(tmp_path, make):
    data = make("scan", "finding").with_transform(as_tutorials_do("scan", out="scan"))
    failures = callback(
        interventions=[Upweight()], reference="train", normalization=NORMALIZATION, permutations=99, pictures=True
    )
    run = trainer(tmp_path, failures, max_epochs=2, num_sanity_val_steps=0)
    run.fit(reading("scan"), DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=16))
    assert failures.last_report.reference.startswith("train")
    assert failures.last_report.interventions
    assert list(tmp_path.rglob("*.png"))


# -- streams -----------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    """A stream of examples that ``form`` makes of index, image and label, in another order in each pass if asked."""

    def __init__(self, form, size=SIZE, shuffled=False, **options):
        self.data, self.form, self.shuffled, self.passes = Images(size, **options), form, shuffled, 0
        self.classes, self.transform = NAMES, self.data.transform

    def __iter__(self):
        self.passes += 1
        order = torch.arange(len(self.data))
        if self.shuffled:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.passes))
        return (self.form(i, *self.data[i], n) for n, i in enumerate(order.tolist()))


FORMS = {
    "id": lambda i, image, label, n: {"image": image, "label": label, "id": i},
    "idx": lambda i, image, label, n: {"image": image, "label": label, "idx": i},
    "texts": lambda i, image, label, n: {"image": image, "label": label, "index": f"{i:04d}"},
    "webdataset": lambda i, image, label, n: {
        "image": image,
        "cls": label,
        "__key__": f"{i % 80}",
        "__url__": f"/a/{i // 80}.tar",
    },
    "file names": lambda i, image, label, n: (image, label, f"{i}.png"),
    "details": lambda i, image, label, n: (image, label, {"width": 8.0, "file_name": f"{i}.png"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_stream__ids_of_the_batches(tmp_path, form):
    reports = [
        validated(tmp_path / str(shuffled), Stream(FORMS[form], shuffled=shuffled), reading("image"))
        for shuffled in (False, True)
    ]
    plain = validated(tmp_path / "plain", loader(), OracleClassifier())
    for report in reports:
        assert report.examples == SIZE
        assert report.accuracy == plain.accuracy
        assert torch.equal(report.table.ids, reports[0].table.ids)
        assert bool((report.table.ids >= 0).all())


def test_stream__texts_from_read_batch_are_ids(tmp_path):
    def read(outputs, batch):
        return BatchRecord(ids=[f"{one}.png" for one in batch["id"].tolist()])

    report = validated(tmp_path, Stream(FORMS["id"]), reading("image"), read_batch=read)
    assert report.table.ids.tolist() == sorted(hashed_names([f"{i}.png" for i in range(SIZE)]).tolist())


def test_stream__indices_that_the_loader_draws_have_precedence_over_columns(tmp_path):
    class WithColumn(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return {"image": image, "label": label, "id": 7}

    report = validated(tmp_path, WithColumn(), reading("image"))
    assert report.table.ids.tolist() == list(range(SIZE))


def test_stream__without_ids_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(ConfigurationError, match="under a key such as id, index or __key__"):
        validated(tmp_path, Stream(lambda i, image, label, n: (image, label)), reading("image"))


def test_stream__of_litdata_gets_a_wrapper(tmp_path):
    class StreamingDataset(Stream):
        def __len__(self):
            return len(self.data)

        def __getitem__(self, index):
            return self.form(index, *self.data[index], index)

    stream = StreamingDataset(lambda i, image, label, n: (image, label))
    with pytest.raises(ConfigurationError, match="class Indexed") as caught:
        validated(tmp_path, stream, reading("image"))
    lines = str(caught.value).split("\n\n")[1]
    scope = {"torch": torch}
    exec(lines, scope)  # the code that the message recommends
    wrapped = scope["Indexed"](stream)
    assert isinstance(wrapped, Dataset)
    assert not isinstance(wrapped, IterableDataset)
    report = validated(tmp_path, wrapped, reading("image"))
    assert report.table.ids.tolist() == list(range(SIZE))
    assert [entry.name for entry in report.classes] == NAMES


def fitted(tmp_path, stream, epochs=2, **options):
    failures = callback(**options)
    trainer(tmp_path, failures, max_epochs=epochs, num_sanity_val_steps=0).fit(
        reading("image"), loader(32), DataLoader(stream, batch_size=16)
    )
    return failures.last_report


def test_stream__a_running_counter_is_noticed(tmp_path):
    def counted(i, image, label, n):
        return {"image": image, "label": label, "id": n}

    with pytest.warns(
        UserWarning, match="images have another id than in the analysis before.*Ids must be stable"
    ) as said:
        report = fitted(tmp_path, Stream(counted, shuffled=True), epochs=3, permutations=0)
    assert len([one for one in said if "Ids must be stable" in str(one.message)]) <= 2  # once for each number
    assert any("Ids must be stable" in note for note in report.notes)


@pytest.mark.parametrize("shuffled", [False, True])
def test_stream__stable_ids_are_not_doubted(tmp_path, shuffled):
    report = fitted(tmp_path, Stream(FORMS["id"], shuffled=shuffled), permutations=0)
    assert not any("stable" in note for note in report.notes)


def test_stream__random_transforms_are_no_reason_to_doubt_ids(tmp_path):
    def noisy(i, image, label, n):
        return {"image": (image + 0.02 * torch.rand(1)).clamp(-1.9, 1.9), "label": label, "id": i}

    report = fitted(tmp_path, Stream(noisy, shuffled=True), permutations=0)
    assert not any("stable" in note for note in report.notes)


@pytest.mark.parametrize("how", ["validate", "fit"])
def test_stream__pictures_of_images_that_were_kept(tmp_path, how):
    if how == "validate":
        report = validated(tmp_path, Stream(FORMS["texts"]), reading("image"), pictures=True)
    else:
        report = fitted(tmp_path, Stream(FORMS["texts"], shuffled=True), pictures=True)
    assert any(entry.hardest_ids for entry in report.classes)
    drawn = {path.name for path in tmp_path.rglob("*.png")}
    assert drawn, "there are no pictures"
    (page,) = tmp_path.rglob("report.html")
    assert page.read_text(encoding="utf-8").count("data:image/") + len(drawn) > 4


# -- webdataset --------------------------------------------------------------------------------------------------------


def write_shards(folder, n_shards=2):
    """Write shards whose keys are unique within each shard only."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = pixels_of()
    per_shard = SIZE // n_shards
    for shard in range(n_shards):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as archive:
            for k in range(per_shard):
                image = io.BytesIO()
                row = shard * per_shard + k
                Image.fromarray(pixels[row].permute(1, 2, 0).numpy()).save(image, "png")
                for name, content in (("png", image.getvalue()), ("cls", str(int(labels[row])).encode())):
                    entry = tarfile.TarInfo(f"{k:06d}.{name}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return [str(folder / f"shard-{shard}.tar") for shard in range(n_shards)]


@pytest.mark.parametrize("as_mapping", [True, False])
def test_webdataset__keys_images_and_labels(tmp_path, as_mapping):
    wds = pytest.importorskip("webdataset")
    files = write_shards(tmp_path / "shards", 2 if as_mapping else 1)
    data = wds.WebDataset(files, shardshuffle=False).decode("torchrgb")
    data = data if as_mapping else data.to_tuple("png", "cls", "__key__")
    report = validated(
        tmp_path,
        DataLoader(data.map(normalise), batch_size=16),
        reading("png"),
        normalization=NORMALIZATION,
        pictures=True,
    )
    assert report.examples == SIZE
    assert report.accuracy == pytest.approx(expected_accuracy())
    assert list(tmp_path.rglob("*.png"))


def normalise(example):
    if isinstance(example, dict):
        return example | {"png": (example["png"] - 0.5) / 0.25}
    return ((example[0] - 0.5) / 0.25, *example[1:])


def test_hugging_face__iterable(tmp_path):
    pytest.importorskip("datasets")
    data = real(idx=list(range(SIZE))).to_iterable_dataset().map(plain_columns, remove_columns=["image"])
    report = validated(
        tmp_path,
        DataLoader(data.with_format("torch"), batch_size=16),
        reading("img"),
        class_names=NAMES,
        normalization=NORMALIZATION,
        pictures=True,
    )
    assert report.accuracy == pytest.approx(expected_accuracy())
    assert report.table.ids.tolist() == list(range(SIZE))
    assert list(tmp_path.rglob("*.png"))


def plain_columns(example):
    image = np.asarray(example["image"], dtype=np.uint8).transpose(2, 0, 1)
    return {"img": ((image.astype(np.float32) / 255 - 0.5) / 0.25).tolist()}


def test_litdata__through_the_wrapper(tmp_path):
    litdata = pytest.importorskip("litdata")
    pixels, labels = pixels_of()
    rows = [{"image": pixels[i].numpy(), "label": int(labels[i])} for i in range(SIZE)]
    folder = tmp_path / "chunks"
    folder.mkdir()
    writer = litdata.streaming.Cache(str(folder), chunk_size=50)
    for i, row in enumerate(rows):
        writer[i] = row
    writer.done()
    writer.merge()
    stream = litdata.StreamingDataset(str(folder), transform=litdata_transform)
    with pytest.raises(ConfigurationError, match="class Indexed"):
        validated(tmp_path, DataLoader(stream, batch_size=16), reading("image"))
    report = validated(tmp_path, Indexed(stream), reading("image"), normalization=NORMALIZATION, pictures=True)
    assert report.table.ids.tolist() == list(range(SIZE))
    assert report.accuracy == pytest.approx(expected_accuracy())


def litdata_transform(row):
    return row | {"image": (torch.from_numpy(np.array(row["image"])).float() / 255 - 0.5) / 0.25}


class Indexed(Dataset):
    """The wrapper of the message and of the documents."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


# -- views -------------------------------------------------------------------------------------------------------------


class Views(Images):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return [image, image.flip(2)], label, f"{index}.png"


class FirstView(Classifier):
    oracle = OracleClassifier()

    def forward(self, x):
        return self.oracle(x) + self.net(x) * 0

    def validation_step(self, batch, batch_idx):
        views, _labels, _names = batch
        return {"logits": self(views[0])}


def test_views__the_first_counts_and_that_is_said_once(tmp_path):
    plain = validated(tmp_path / "plain", loader(), OracleClassifier())
    with pytest.warns(UserWarning, match="2 views of each image: FailureModes looks at the first") as said:
        report = validated(tmp_path / "views", Views(), FirstView())
    assert len([one for one in said if "views of each image" in str(one.message)]) == 1
    assert report.accuracy == plain.accuracy
    assert [entry.cv_score for entry in report.classes] == [entry.cv_score for entry in plain.classes]
    assert torch.equal(report.table.digests, plain.table.digests)
