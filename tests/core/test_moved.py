"""Old import paths: each resolves to the object under its new path, with a warning."""

from __future__ import annotations

import importlib
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from lightning_failures.captions.grammar import CaptionVocabulary
from lightning_failures.core.moved import MODULES, NAMES, install

PACKAGE = "lightning_failures"
SCRIPTS = [old for old, new in MODULES.items() if new.endswith(".py")]
ROOMS = [room for room in NAMES if room not in MODULES]


@pytest.fixture
def first_time():
    """Let the old paths be imported as if for the first time, and forget them afterwards."""

    def forget() -> None:
        for old in MODULES:
            sys.modules.pop(f"{PACKAGE}.{old}", None)

    forget()
    yield
    forget()


@pytest.mark.parametrize("old", [old for old in MODULES if old not in SCRIPTS])
def test_modules__old_path_gives_the_new_module(old, first_time):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        parent = old.rpartition(".")[0]
        if parent in MODULES:
            importlib.import_module(f"{PACKAGE}.{parent}")
    with pytest.warns(DeprecationWarning, match=f"{PACKAGE}.{old} is deprecated") as caught:
        module = importlib.import_module(f"{PACKAGE}.{old}")
    assert module is sys.modules[f"{PACKAGE}.{MODULES[old]}"]
    assert module.__name__ == module.__spec__.name == f"{PACKAGE}.{MODULES[old]}"
    (warning,) = caught
    assert f"Use {PACKAGE}.{MODULES[old]}." in str(warning.message)
    for name, place in NAMES.get(old, {}).items():
        assert getattr(module, name) is _find(place)


@pytest.mark.parametrize("old", SCRIPTS)
def test_modules__scripts_say_where_they_are(old, first_time):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        importlib.import_module(f"{PACKAGE}.{old.rpartition('.')[0]}")
    with pytest.raises(ModuleNotFoundError, match=MODULES[old]):
        importlib.import_module(f"{PACKAGE}.{old}")


@pytest.mark.parametrize(("room", "name"), [(room, name) for room in ROOMS for name in NAMES[room]])
def test_names__of_a_room_that_was_a_module(room, name):
    with pytest.warns(DeprecationWarning, match=f"{PACKAGE}.{room}.{name} is deprecated.* Use {PACKAGE}."):
        found = getattr(importlib.import_module(f"{PACKAGE}.{room}"), name)
    assert found is _find(NAMES[room][name])


@pytest.mark.parametrize("room", ROOMS)
def test_names__that_never_were(room):
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        importlib.import_module(f"{PACKAGE}.{room}").nothing  # noqa: B018


def test_warning__is_given_once_where_the_path_is_imported(first_time):
    with pytest.warns(DeprecationWarning, match="grammar") as caught:
        from lightning_failures.grammar import CaptionVocabulary as Old
    from lightning_failures.grammar import CaptionGrammar  # noqa: F401

    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert Old is CaptionVocabulary
    vocabulary = Old(adjectives=("red",))
    assert isinstance(pickle.loads(pickle.dumps(vocabulary)), CaptionVocabulary)


def test_records__names_that_moved_elsewhere_are_in_the_warning(first_time):
    with pytest.warns(DeprecationWarning, match=r"Grades is lightning_failures\.data\.grades\.Grades\."):
        from lightning_failures.records import FailureReport, Grades
    assert Grades.__module__ == "lightning_failures.data.grades"
    assert FailureReport.__module__ == "lightning_failures.data.report"


def test_yaml__class_path(first_time):
    parser = ArgumentParser()
    parser.add_argument("--captions", type=str | Path | CaptionVocabulary)
    words = {"class_path": "lightning_failures.grammar.CaptionVocabulary", "init_args": {"adjectives": ["red"]}}
    with pytest.warns(DeprecationWarning, match="lightning_failures.captions.grammar"):
        config = parser.parse_object({"captions": words})
    assert parser.instantiate(config).captions == CaptionVocabulary(adjectives=("red",))


def test_install__twice_changes_nothing():
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before


def test_install__imports_nothing():
    code = f"import sys, json, {PACKAGE}; print(json.dumps([m for m in sys.modules if m.startswith('{PACKAGE}')]))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(json.loads(found.stdout)) == {PACKAGE, f"{PACKAGE}.core", f"{PACKAGE}.core.moved"}


def _find(place: str):
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name)
