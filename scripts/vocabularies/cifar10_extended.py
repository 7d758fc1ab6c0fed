"""Write the extended vocabulary of CIFAR-10: kinds of each class, such as breeds, by WordNet and ImageNet.

The nouns of a class are the kinds of it in WordNet that ImageNet-21k has pictures of, the nearest first, and before
them those that are classes of ImageNet (Jain et al., ICLR 2023, section 4.1: extended nouns). Places and poses are
those of the simple vocabulary.

    python scripts/vocabularies/cifar10_extended.py /usr/share/wordnet      # Debian's package wordnet-base: 3.0
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import yaml

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.captions.wordnet import WordNetFiles

OUTPUT = Path(__file__).parents[2] / "lightning_failures" / "captions" / "vocabularies" / "cifar10-extended.yaml"
HEAD = """\
# The ten classes of CIFAR-10 with extended nouns (Jain et al., ICLR 2023, 4.1): kinds of each class.
# Written by scripts/vocabularies/cifar10_extended.py from WordNet 3.0 (Princeton University) and timm.
classes:
"""
MOST, WIDTH = 40, 116


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet", type=Path, help="folder with WordNet's files data.noun and index.noun")
    wordnet = WordNetFiles.read(parser.parse_args().wordnet)
    info = files("timm") / "data" / "_info"
    sets = [
        {int(one[1:]) for one in (info / name).read_text().split()}
        for name in ("imagenet_synsets.txt", "imagenet22k_synsets.txt")
    ]
    simple = CaptionVocabulary.load("cifar10")
    lines = [HEAD]
    for name in simple.classes:
        own = simple.classes[name]
        kinds = dict.fromkeys(kind for known in sets for kind in wordnet.narrower(name, MOST, known))
        nouns = dict.fromkeys((*own["nouns"], *kinds))
        lines.append(f"  {name}:\n")
        for key, words in (("nouns", list(nouns)[: MOST + 1]), ("prepositions", list(own["prepositions"]))):
            text = yaml.safe_dump(words, default_flow_style=True, width=WIDTH - 8, allow_unicode=True).strip()
            lines.append(f"    {key}:\n" + "".join(f"      {line.strip()}\n" for line in text.splitlines()))
    OUTPUT.write_text("".join(lines), encoding="utf-8")
    print(f"{len(simple.classes)} classes: {OUTPUT}")


if __name__ == "__main__":
    main()
