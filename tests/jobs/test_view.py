"""facescan view RUN: driven by a browser and by bare HTTP."""

import hashlib
import http.client
import io
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlencode, urlsplit

import pyarrow.parquet as pq
import pytest
from PIL import Image
from playwright.sync_api import Browser
from rich.console import Console

from facescan.errors import UsageError
from jobs.config import resolve
from jobs.run import run
from jobs.view import Viewer, serving
from tests import browser as browsers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

Row = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Path:
    del local_ray
    settings = {
        "dataset": "sample",
        "limit": 40,
        "model": ["fake"],
        "attributes": ["race", "gender"],
        "output_dir": tmp_path_factory.mktemp("runs") / "first",
    }
    folder = run(resolve(settings, None), Console(file=io.StringIO()))
    return Path(folder.root.location)


@pytest.fixture(scope="module")
def viewer(made: Path) -> Iterator[Viewer]:
    with ExitStack() as stack:
        viewer = serving(str(made), stack)
        thread = Thread(target=viewer.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield viewer
        viewer.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.running() as running:
        yield running


@pytest.fixture(scope="module")
def rows(made: Path) -> list[Row]:
    files = sorted((made / "predictions").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def asked(
    viewer: Viewer, path: str, *, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request to this path as it is written."""
    port = viewer.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    response = connection.getresponse()
    answer = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return answer


def result(row: Row) -> str:
    if row["outcome"] != "answered":
        return "no answer"
    return "right" if row["label"] == row["target"] else "wrong"


def test_rows_are_shown_as_they_were_predicted(
    viewer: Viewer, browser: Browser, rows: list[Row]
) -> None:
    with browsers.opened(browser, viewer.url) as watched:
        page = watched.page
        seen: list[tuple[str, ...]] = []
        while True:
            for item in page.locator(".rows li").all():
                said, *_ = item.locator("strong").all_inner_texts()
                attribute, label, target, image = (
                    item.locator("dl").first.locator("dt").first.inner_text(),
                    *(
                        item.locator("dl").first.locator("dd").nth(n).inner_text()
                        for n in (0, 1, 3)
                    ),
                )
                seen.append((image, attribute, said, label, target))
            later = page.get_by_role("link", name="Later")
            if not later.count():
                break
            # A click alone returns before the next page is there.
            with page.expect_navigation():
                later.click()
    expected = [
        (row["image_id"], row["attribute"], result(row), row["label"] or "no label", row["target"])
        for row in rows
    ]
    assert len(seen) == 80
    assert sorted(seen) == sorted(expected)


def test_filters_leave_what_they_say(viewer: Viewer, browser: Browser, rows: list[Row]) -> None:
    wrong = [row for row in rows if row["attribute"] == "race" and result(row) == "wrong"]
    some = Counter(row["target"] for row in wrong).most_common(1)[0][0]
    left = [row for row in wrong if row["target"] == some]
    with browsers.opened(browser, viewer.url) as watched:
        page = watched.page
        page.get_by_label("attribute").select_option("race")
        page.get_by_label("result").select_option("wrong")
        page.get_by_label("target").select_option(some)
        with page.expect_navigation():
            page.get_by_role("button", name="Show").click()
        assert page.locator("h2").inner_text().startswith(f"{len(left)} predictions")
        assert page.locator("li.wrong").count() == min(24, len(left))
        assert page.get_by_label("result").input_value() == "wrong"


def test_pictures_are_there_and_nobody_else_is_asked(viewer: Viewer, browser: Browser) -> None:
    with browsers.opened(browser, viewer.url, width=390) as watched:
        page = watched.page
        for picture in page.locator(".rows img").all():
            picture.scroll_into_view_if_needed()
        widths = page.evaluate(
            "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
        )
        assert len(widths) == 24
        assert min(widths) > 0
        assert watched.said == []
        assert all(url.startswith((viewer.url, "data:")) for url in watched.asked)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.locator("details summary").first.click()
        assert page.locator("details blockquote").first.is_visible()


def test_pictures_are_encoded_anew(viewer: Viewer, rows: list[Row]) -> None:
    row = rows[0]
    place = viewer.root + "picture?" + urlencode({"id": row["image_id"]})
    status, headers, body = asked(viewer, place)
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert hashlib.sha256(body).hexdigest() != row["image_sha256"]
    assert max(Image.open(io.BytesIO(body)).size) <= 320


def test_only_this_machine_can_ask(viewer: Viewer) -> None:
    assert viewer.server_address[0] == "127.0.0.1"
    assert urlsplit(viewer.url).hostname == "127.0.0.1"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1:1"])
def test_another_name_for_this_machine_is_refused(viewer: Viewer, host: str) -> None:
    status, _, body = asked(viewer, viewer.root, host=host)
    assert status == 403
    assert b"predictions" not in body


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/index.html",
            "//",
            "/../../etc/passwd",
            "/x/picture?id=1",
            "/%2e%2e/manifest.json",
        ),
        *("{root}../../etc/passwd", "{root}..%2f..%2fmanifest.json", "{root}manifest.json"),
        *("{root}picture", "{root}picture?id=../../manifest.json", "{root}picture?id=/etc/passwd"),
        *("{root}picture/../..", "{other}", "{other}picture?id=1"),
    ],
)
def test_nothing_else_is_served(viewer: Viewer, path: str) -> None:
    other = viewer.root[:-2] + "/"
    status, _, body = asked(viewer, path.format(root=viewer.root, other=other))
    assert status == 404
    assert b"root:" not in body
    assert b"schema_version" not in body


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("result=' OR true --", "no rows can be chosen by result"),
        ("image_id=1", "no rows can be chosen by image_id"),
        ("group=image_id: 1", "no rows can be chosen by group"),
        ("page=x", "page: not a number"),
        ("page=-1", "page: not a number"),
    ],
)
def test_what_cannot_be_chosen_is_said(viewer: Viewer, query: str, message: str) -> None:
    key, value = query.split("=", 1)
    status, _, body = asked(viewer, f"{viewer.root}?{urlencode({key: value})}")
    assert status == 400
    assert message in body.decode()


def test_nothing_can_be_sent(viewer: Viewer) -> None:
    assert asked(viewer, viewer.root, method="POST")[0] == 501
    status, headers, body = asked(viewer, viewer.root, method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1000
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"


def test_a_run_is_not_changed_by_looking_at_it(viewer: Viewer, made: Path) -> None:
    def state() -> dict[str, str]:
        return {
            str(path): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in made.rglob("*")
            if path.is_file()
        }

    before = state()
    assert asked(viewer, f"{viewer.root}?page=2")[0] == 200
    assert state() == before


def test_a_run_without_predictions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="no predictions to look at"), ExitStack() as stack:
        serving(str(tmp_path), stack)


def test_the_command_says_where_it_listens_and_ends_with_ctrl_c(made: Path) -> None:
    command = [sys.executable, "-m", "jobs.cli", "view", str(made)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # Where the tests themselves ignore Ctrl-C, a child would.
    attended = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=attended
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[0]
            parts = urlsplit(url)
            assert parts.hostname == "127.0.0.1"
            connection = http.client.HTTPConnection("127.0.0.1", parts.port or 0, timeout=30)
            connection.request("GET", parts.path)
            assert connection.getresponse().status == 200
            connection.close()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()  # or a failure here would wait for it without end


def test_looking_needs_no_ray(made: Path) -> None:
    del made
    heavy = json.dumps(["ray", "torch", "vllm", "transformers"])
    check = f"import sys, jobs.view, jobs.report; sys.exit(bool(set({heavy}) & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", check], check=True)
