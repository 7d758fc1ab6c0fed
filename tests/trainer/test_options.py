"""Options of the callback: few at the top, the rest in groups, former spellings with a warning."""

from __future__ import annotations

import inspect

import pytest
from jsonargparse import ArgumentParser

from lightning_failures import FailureModes
from lightning_failures.callback import AdvancedOptions, DataOptions, PictureOptions
from lightning_failures.errors import ConfigurationError, GeneratorError
from lightning_failures.trainer.options import OPTIONS, check_groupings, group_options, load_counterfactuals
from tests.helpers.toy import ColourEncoder, callback

FORMER = {
    "task": ("binary", "data=DataOptions"),
    "groups_from": ("patient", "data=DataOptions"),
    "metadata": (("camera",), "data=DataOptions"),
    "pictures_every_n": (5, "pictures=PictureOptions"),
    "feature_names": ("names.yaml", "pictures=PictureOptions"),
    "memory_budget": ("2 GiB", "advanced=AdvancedOptions"),
    "worst_k": (3, "advanced=AdvancedOptions"),
    "n_directions": (2, "advanced=AdvancedOptions"),
    "permutations": (99, "advanced=AdvancedOptions"),
    "cache_folder": ("cache", "advanced=AdvancedOptions"),
    "device": ("cpu", "advanced=AdvancedOptions"),
    "seed": (7, "advanced=AdvancedOptions"),
}


def from_yaml(init_args: dict) -> FailureModes:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FailureModes, "callback")
    given = {"callback": {"class_path": "lightning_failures.FailureModes", "init_args": init_args}}
    return parser.instantiate(parser.parse_object(given)).callback


def test_signature__has_seventeen_options():
    kinds = [parameter.kind for parameter in inspect.signature(FailureModes).parameters.values()]
    assert kinds.count(inspect.Parameter.KEYWORD_ONLY) == 17


@pytest.mark.parametrize("name", FORMER)
def test_former_spellings__work_with_a_warning(name):
    value, group = FORMER[name]
    with pytest.warns(DeprecationWarning, match=rf"FailureModes\({name}=...\) has moved: .*{group}") as caught:
        made = FailureModes(**{name: value})
    assert getattr(made, name) == value or str(getattr(made, name)) == value
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:``instantiate_classes`` was deprecated")
@pytest.mark.parametrize("name", FORMER)
def test_former_spellings__from_yaml(name):
    value, _ = FORMER[name]
    plain = list(value) if isinstance(value, tuple) else value
    with pytest.warns(DeprecationWarning, match="has moved"):
        made = from_yaml({name: plain})
    assert getattr(made, name) == value or str(getattr(made, name)) == value


@pytest.mark.filterwarnings("ignore:``instantiate_classes`` was deprecated")
def test_groups__from_yaml():
    made = from_yaml(
        {
            "data": {"metadata": ["camera"], "groups_from": None},
            "pictures": {"every_n": 3},
            "advanced": {"seed": 4},
            "min_coverage": 0.9,
        }
    )
    assert (made.metadata, made.groups_from, made.pictures, made.pictures_every_n) == (("camera",), None, True, 3)
    assert (made.seed, made.min_coverage, made.permutations) == (4, 0.9, 999)
    assert from_yaml({}).groups_from == "groups"


@pytest.mark.filterwarnings("ignore:``instantiate_classes`` was deprecated")
@pytest.mark.parametrize("value", [True, False, "embedded:digits"])
def test_counterfactuals__from_yaml(value):
    assert from_yaml({"advanced": {"counterfactuals": value}}).counterfactuals == value


def test_counterfactuals__a_generator_is_named_or_given():
    def draw(prompts, seeds):
        raise NotImplementedError

    assert load_counterfactuals(draw).name == "draw"
    assert load_counterfactuals(False) is False
    with pytest.raises(GeneratorError, match="embedded:digits"):
        load_counterfactuals("embedded:digit")
    with pytest.raises(ConfigurationError, match=r"AdvancedOptions\(counterfactuals=...\) must be .* got 7"):
        FailureModes(advanced=AdvancedOptions(counterfactuals=7))


def test_shorthands__stay():
    made = FailureModes(min_coverage=0.8, every_n_validations=2)
    assert (made.min_coverage, made.every_n_validations) == (0.8, 2)


def test_groups_from__none_is_a_value():
    assert FailureModes(data=DataOptions(groups_from=None)).groups_from is None
    with pytest.warns(DeprecationWarning, match="groups_from"):
        assert FailureModes(groups_from=None).groups_from is None


def test_unknown_option__is_an_error():
    with pytest.raises(TypeError, match="no_such_option"):
        FailureModes(no_such_option=3)


def test_refused__names_the_group():
    with pytest.raises(ConfigurationError, match=r"AdvancedOptions\(n_directions=...\) must be .* got 0"):
        FailureModes(advanced=AdvancedOptions(n_directions=0))
    with pytest.raises(ConfigurationError, match=r"PictureOptions\(every_n=...\) must be .* got 0"):
        FailureModes(pictures=PictureOptions(every_n=0))


def test_options__an_equal_callback_is_made_of_them():
    made = callback(encoder=ColourEncoder(), seed=5, metadata=("dark",), pictures=True, pictures_every_n=2)
    options = {name: getattr(made, name) for name in OPTIONS}
    again = FailureModes(**group_options(options))
    assert {name: getattr(again, name) for name in OPTIONS} == options


@pytest.mark.parametrize(
    ("data", "advanced", "message"),
    [
        (
            {},
            {"groupings": ["labels"]},
            r"AdvancedOptions\(groupings=...\) must be a list of names out of label, .*labels",
        ),
        ({}, {"groupings": "label"}, r"AdvancedOptions\(groupings=...\) must be a list of names"),
        (
            {},
            {"groupings": ["metadata"]},
            r"AdvancedOptions\(groupings=...\) must be without 'metadata' if there is none",
        ),
        (
            {"task": "multilabel", "clusters_from": "cluster"},
            {},
            r"DataOptions\(task=...\) must be another with clusters_",
        ),
    ],
)
def test_groupings__refused(data, advanced, message):
    with pytest.raises(ConfigurationError, match=message):
        FailureModes(data=DataOptions(**data), advanced=AdvancedOptions(**advanced))


def test_groupings__of_several_classes_need_one_process():
    pairs = FailureModes(advanced=AdvancedOptions(groupings=["label", "pair", "union"]))
    check_groupings(pairs, world_size=2)
    for made in (
        FailureModes(data=DataOptions(clusters_from="cluster")),
        FailureModes(data=DataOptions(metadata=["camera"]), advanced=AdvancedOptions(groupings=["metadata"])),
    ):
        check_groupings(made, world_size=1)
        with pytest.raises(ConfigurationError, match="need a single process, got 2"):
            check_groupings(made, world_size=2)
