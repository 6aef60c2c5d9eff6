"""A disk that fills up, for the tests of what the run folder does about it; and a browser, for those of its page."""

import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from playwright.sync_api import sync_playwright


@contextmanager
def _limit(size: int) -> Iterator[None]:
    """No file may grow beyond size bytes: `write` is first cut short, then fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    return _limit


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium, or what $CHROMIUM names, without a window; Playwright's event loop ends with the module."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("THERE IS NO CHROMIUM: the report's page is not tested in a browser (apt-get install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an address in a fresh window; at the end no error may have been said, and nothing asked of elsewhere."""
    problems: list[str] = []
    contexts = []

    def is_problem(said: Any) -> bool:
        """Any error or warning, but that a server which has ended cannot be reached again, or has no room to save."""
        expected = ("net::ERR_CONNECTION_REFUSED", "status of 507")
        return said.type in ("error", "warning") and not any(text in said.text for text in expected)

    def open_(address: str, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": 1300, "height": 900}, **options)
        context.set_default_timeout(60_000)  # the machine may be busy
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: problems.append(said.text) if is_problem(said) else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        own = address if address.startswith("http") else "file:"
        page.on("request", lambda asked: None if asked.url.startswith((own, "data:")) else problems.append(asked.url))
        page.goto(address)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not problems
