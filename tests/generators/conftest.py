"""A tiny pipeline of diffusers, and a network that must not be used."""

from __future__ import annotations

import socket

import pytest

from tests.generators.tiny import save_stable_diffusion

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:diffusers")  # of what the tests build


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def no_network(monkeypatch):
    from huggingface_hub import constants

    def refuse(*args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
