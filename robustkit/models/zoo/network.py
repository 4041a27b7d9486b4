"""Downloads that fail at once where there is no network, with what was cached still found."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 3.0  # seconds that a host has to accept a connection


def reachable(address: str, seconds: float = PATIENCE) -> bool:
    """Whether the host of a URL, or the proxy in front of it, accepts a connection in time."""
    url = urlsplit(address)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = url.port or (80 if url.scheme == "http" else 443)
    found = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((url.hostname or "", port), timeout=seconds).close()
            found.set()

    # The look-up of a name has no limit of its own, so that it is left behind where it hangs.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return found.is_set()


@contextlib.contextmanager
def online(address: str, seconds: float = PATIENCE) -> Iterator[bool]:
    """Yield whether the host of a URL can be reached; where not, nothing inside waits for a host.

    Libraries try several files several times, for a minute or two in all. Without a network their
    look-ups of names fail at once, and they fall back to what is cached.
    """
    if reachable(address, seconds):
        yield True
        return
    plain, asked = socket.getaddrinfo, urlsplit(address).hostname

    def refuse(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(
            socket.EAI_AGAIN, f"{asked} could not be reached within {seconds:g} seconds"
        )

    socket.getaddrinfo = refuse
    try:
        with _hub_offline():
            yield False
    finally:
        socket.getaddrinfo = plain


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """Tell huggingface_hub that there is no network: it repeats what fails, after longer waits."""
    hub: Any = sys.modules.get("huggingface_hub.constants")
    if hub is None:
        yield
        return
    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, True
    _new_sessions()
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before
        _new_sessions()


def _new_sessions() -> None:
    """Let its next request read the setting: by the name of version 0, and of 1."""
    utils: Any = sys.modules.get("huggingface_hub.utils")
    for name in ("reset_sessions", "close_session"):
        if callable(renew := getattr(utils, name, None)):
            renew()
