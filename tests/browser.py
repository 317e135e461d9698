"""A headless Chromium for tests that look at a page as people do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_PATIENCE_MS = 120_000
"""For whatever the browser is asked: a CI machine may be busy."""

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str:
    """The Chromium of this machine; the test skips where there is none."""
    named = os.environ.get("FACESCAN_CHROMIUM")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium: install Debian's chromium, or name one in FACESCAN_CHROMIUM")
    return found


@contextmanager
def running() -> Iterator[Browser]:
    # Chromium's sandbox does not start as root, which tests on a CI machine often are.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    path = executable()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=arguments, timeout=_PATIENCE_MS
        )
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, with everything it said and asked the network for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def opened(
    browser: Browser,
    url: str,
    *,
    width: int = 1280,
    scheme: Literal["light", "dark"] = "light",
) -> Iterator[Watched]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(_PATIENCE_MS)
    watched = Watched(context.new_page())
    watched.page.on("console", lambda message: watched.said.append(message.text))
    watched.page.on("pageerror", lambda error: watched.said.append(str(error)))
    watched.page.on("request", lambda request: watched.asked.append(request.url))
    watched.page.goto(url)
    yield watched
    context.close()
