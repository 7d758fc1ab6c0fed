"""Write the vocabulary of ImageNet: the kind of each class by WordNet, with the words of Jain et al., ICLR 2023, C.2.

The kind of a class is the first of 37 ancestors that a depth-first walk up its hypernyms meets, as in the published
code. Departure: the published code compares words, so that it takes an amphibious vehicle for an amphibian and a beer
bottle for a ship; here these two senses do not count. Names come from open_clip, and the first lemmas from timm, so
that lists of either are recognised.

    python scripts/vocabularies/imagenet.py /usr/share/wordnet/data.noun      # Debian's package wordnet-base: 3.0
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

import yaml
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

OUTPUT = Path(__file__).parents[2] / "lightning_failures" / "captions" / "vocabularies" / "imagenet.yaml"
HEAD = """\
# ImageNet: captions name the kind of a class, one of 37 ancestors in WordNet (Jain et al., ICLR 2023, C.2).
# Written by scripts/vocabularies/imagenet.py from WordNet 3.0 (Princeton University), open_clip and timm.
# id: [everyday name, other names]; captions of the class are compared with "a photo of a <everyday name>".
adjectives: [white, blue, red, green, black, yellow, orange, brown, group of, close-up, blurry, far away]
prepositions:
  [
    outside, inside, on a black background, on a white background, on a green background, on a blue background,
    on a brown background
  ]
groups:
"""
KINDS = (
    ("reptile amphibian", ["in a tank", "on the ground", "on a rock", "in the grass"]),
    ("marsupial swine bovid feline canine rodent",
     ["in the grass", "in a house", "in the forest", "on the ground", "with a person"]),
    ("fungus", ["on the ground", "in the grass"]),
    ("food", ["on a plate", "on the ground", "on a table", "with a person"]),
    ("geological_formation train mammal structure entity", []),
    ("wheeled_vehicle bus vehicle", ["on the road", "parked"]),
    ("fruit flower", ["on a table", "on the ground", "on a tree", "with a person", "in the grass"]),
    ("fish aquatic_mammal", ["in a tank", "with a person", "underwater"]),
    ("person", ["in a house", "on a field"]),
    ("equipment instrumentality appliance container fabric covering device implement",
     ["on a table", "with a person", "with a hand"]),
    ("primate", ["in a tree", "on the ground", "in the grass"]),
    ("invertebrate", ["in the grass", "on the ground", "in a house"]),
    ("bird", ["in the air", "on the ground", "in a cage", "in the grass", "flying", "perched"]),
    ("aircraft", ["in the air", "on the ground"]),
    ("furniture", ["in a house"]),
    ("vessel", ["in the water", "docked", "in the ocean"]),
)  # fmt: skip
OTHER_SENSES = {2704792, 4531098}  # the amphibian that is a vehicle, and the vessel that is a container
PREPOSITIONS = {ancestor: phrases for ancestors, phrases in KINDS for ancestor in ancestors.split()}


def read_nouns(path: Path) -> dict[int, tuple[str, list[int]]]:
    """Return the first word and the hypernyms of each synset of WordNet's file data.noun, by its offset."""
    synsets = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields = line.partition(" | ")[0].split()
        start = 4 + 2 * int(fields[3], 16)
        pointers = fields[start + 1 : start + 1 + 4 * int(fields[start])]
        above = [int(target) for kind, target in zip(pointers[::4], pointers[1::4], strict=True) if kind == "@"]
        synsets[int(fields[0])] = fields[4].lower(), above
    return synsets


def kind_of(synset: int, synsets: dict[int, tuple[str, list[int]]]) -> str | None:
    """Return the first ancestor of a synset that has words, depth first, several hypernyms in alphabetical order."""
    word, above = synsets[synset]
    if word in PREPOSITIONS and synset not in OTHER_SENSES:
        return word
    found = (kind_of(one, synsets) for one in sorted(above, key=lambda offset: synsets[offset][0]))
    return next((kind for kind in found if kind is not None), None)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet", type=Path, help="WordNet's file data.noun")
    synsets = read_nouns(parser.parse_args().wordnet)
    info = files("timm") / "data" / "_info"
    ids = (info / "imagenet_synsets.txt").read_text().split()
    lemmas = dict(line.split("\t") for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines())
    firsts = [lemmas[one].split(",")[0] for one in ids]
    shared = Counter(firsts), Counter(IMAGENET_CLASSNAMES)
    groups: dict[str, list[str]] = defaultdict(list)
    for index, one in enumerate(ids):
        names = {}  # in order, without repeats; a name of two classes is followed by the index, as in reports
        for name, count in zip((IMAGENET_CLASSNAMES[index], firsts[index]), reversed(shared), strict=True):
            names[f"{name} ({index})" if count[name] > 1 else name] = None
        kind = kind_of(int(one[1:]), synsets)
        assert kind is not None, one
        groups[kind].append(f"      {one}: {yaml.safe_dump(list(names), default_flow_style=True, width=999).strip()}")
    lines = [HEAD]
    for kind in sorted(groups):
        phrases = f"    prepositions: [{', '.join(PREPOSITIONS[kind])}]\n" if PREPOSITIONS[kind] else ""
        lines.append(f"  {kind}:\n{phrases}    classes:\n" + "\n".join(groups[kind]) + "\n")
    OUTPUT.write_text("".join(lines), encoding="utf-8")
    print(f"{len(ids)} classes of {len(groups)} kinds: {OUTPUT}")


if __name__ == "__main__":
    main()
