"""The analysis without a Trainer, for any classifier: here a logistic regression. Runs offline in seconds.

python examples/without_a_trainer.py
"""

import torch
from sklearn.linear_model import LogisticRegression

from lightning_failures import Grades, analyse
from lightning_failures.bundled.digits import ColouredDigits
from lightning_failures.captions.candidates import caption_source
from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.encoders import load_encoder
from lightning_failures.report.tables import class_table


def pixels(images):
    """Return the input of the regression: (N, 3, 32, 32) uint8 -> (N, 192)."""
    return torch.nn.functional.avg_pool2d(images.float() / 255, 4).flatten(1).numpy()


train, validation = ColouredDigits("train", size=2000), ColouredDigits("validation", size=2000)
classifier = LogisticRegression(max_iter=300).fit(pixels(train.images), train.labels)
probabilities = torch.from_numpy(classifier.predict_proba(pixels(validation.images))).float()
labels = torch.as_tensor(validation.labels)

encoder = load_encoder("embedded:digits")
report = analyse(
    Grades(
        ids=torch.arange(len(validation)),
        labels=labels,
        predictions=probabilities.argmax(1),
        confidence=probabilities.gather(1, labels[:, None])[:, 0],
        class_names=tuple(validation.classes),
        groups=torch.as_tensor(validation.groups),
    ),
    encoder.encode_images(validation.images.float() / 255),
    captions=caption_source(encoder, CaptionVocabulary.load("digits"), validation.classes),
)
print(class_table(report))
