"""Without a network, a download fails within seconds and says what helps."""

from __future__ import annotations

import importlib
import importlib.util
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from robustkit.core import optional
from robustkit.data.arrays import from_arrays
from robustkit.data.dataset import Dataset
from robustkit.errors import UsageError
from robustkit.models.load import load_model
from robustkit.models.zoo.network import PATIENCE, online, reachable

NOWHERE = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture
def photos() -> Dataset:
    x = np.zeros((4, 32, 32, 3), dtype=np.uint8)
    return from_arrays("photos", x, np.arange(4), classes=10)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A network that answers nothing while the test runs, not even a look-up."""
    over = threading.Event()

    def look_up(*_: object, **__: object) -> None:
        over.wait(60)
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield
    over.set()  # for the threads that were left behind


def test_a_host_that_listens_is_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/some/file"
        assert reachable(address)
        with online(address) as found:
            assert found
            assert socket.getaddrinfo("127.0.0.1", 80)


def test_the_proxy_is_asked_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": proxy})
        assert reachable("https://no-such-host.invalid/file")


def test_a_host_that_is_silent_is_given_up(silent: None) -> None:
    began = time.monotonic()
    assert not reachable("https://no-such-host.invalid", seconds=0.2)
    assert time.monotonic() - began < 1


def test_nothing_inside_waits_for_a_host() -> None:
    with (
        online(NOWHERE) as found,
        pytest.raises(OSError, match=r"127\.0\.0\.1 could not be reached"),
    ):
        assert not found
        socket.getaddrinfo("no-such-host.invalid", 443)
    assert socket.getaddrinfo("127.0.0.1", 80)


SOURCES = [
    ("hf:nope/nope", "transformers", r"hf:FOLDER"),
    ("timm:resnet10t", "timm", r"--weights FILE"),
    ("torchvision:squeezenet1_1", "torchvision", r"--weights FILE"),
]


@pytest.mark.parametrize(("text", "library", "cure"), SOURCES)
def test_a_source_without_a_network_takes_seconds(
    text: str, library: str, cure: str, photos: Dataset, silent: None,
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"not installed: {library}")
    hub: Any = importlib.import_module("huggingface_hub.constants")
    empty = str(tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(hub, "HF_HUB_CACHE", empty)
    monkeypatch.setenv("TORCH_HOME", empty)
    optional.library(library, library)
    with pytest.raises(UsageError, match=cure) as told:
        load_model(text, data=photos)  # once for what is imported late
    assert told.value.exit_code == 2
    began = time.monotonic()
    with pytest.raises(UsageError, match=rf"could not be reached\. .*{cure}"):
        load_model(text, data=photos)
    assert time.monotonic() - began < PATIENCE + 2
