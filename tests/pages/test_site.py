"""The pages over HTTP: what may be read can be, and nothing else."""

import http.client
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
import uvicorn

from hap import durable
from hap.monitoring.findings import Finding
from hap.monitoring.report import Seen, page_file, report_file, write_report
from hap.pages.drift import render
from hap.pages.site import HOST, application, listing
from tests.monitoring.test_drift import compare
from tests.pages.browser import chromium, needs_chromium, tab
from tests.pages.days import EVIL, broken_month, day, page, report
from tests.pages.test_version import words

SECRET = "nobody's business"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two months of days, the last with its page, a version, and what must not be served."""
    root = tmp_path_factory.mktemp("site")
    pages = root / "pages"
    month = broken_month()
    for one in month:
        write_report(pages, one)
    durable.write_text(page_file(pages, day(0)), render(page(*month, there=frozenset({"v2.html"}))))
    durable.write_text(pages / "v2.html", "<!doctype html><title>v2</title>")
    durable.write_text(pages / "v10.html", "<!doctype html><title>v10</title>")
    durable.write_text(report_file(pages, day(40)), '{"schema": 2}')
    durable.write_text(report_file(pages, day(41)), "{")
    for name in ("secret.txt", "notes.html", "drift-.html", "v02.html", ".v2.html.1.tmp", "drift-2026-03-31.html.bak", "v2.html.txt"):
        durable.write_text(pages / name, SECRET)
    durable.write_text(root / "secret.txt", SECRET)
    (pages / "v3.html").symlink_to(root / "secret.txt")
    (pages / "v4.html").mkdir()
    return pages


@pytest.fixture(scope="module")
def port(pages: Path) -> Iterator[int]:
    """The site on a free port."""
    config = uvicorn.Config(application(pages, pages.parent), HOST, 0, log_level="warning", lifespan="off", ws="none", server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def ask(port: int, target: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request, its target as it is written."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request(method, target, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_pages_of_days_and_versions_and_reports_are_served_as_they_lie(port: int, pages: Path) -> None:
    for name, kind in (("drift-2026-03-31.html", "text/html"), ("v2.html", "text/html"), ("drift-2026-03-31.json", "application/json")):
        status, headers, body = ask(port, f"/{name}")
        assert (status, body) == (200, (pages / name).read_bytes()) and headers["content-type"].startswith(kind)


@pytest.mark.parametrize(
    "target",
    [
        *("/secret.txt", "/notes.html", "/drift-.html", "/v02.html", "/v2.html.txt", "/.v2.html.1.tmp", "/drift-2026-03-31.html.bak"),
        *("/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "//secret.txt", "/pages/../../secret.txt", "/..\\secret.txt"),
        *("/v3.html", "/v4.html", "/v9.html", "/v2.html/", "/v2.html%00", "/v2.html%0a", "/V2.HTML", f"/drift-{quote('٢٠٢٦')}-03-31.html"),
        *("/drift-2026-03-30.html", "/registry/ledger.db", "/params.yaml", "/%", "/" + "a" * 5000),
    ],
)  # fmt: skip
def test_nothing_else_is_served_whatever_the_path(port: int, target: str) -> None:
    status, headers, body = ask(port, target)
    assert status in (400, 404) and SECRET.encode() not in body and len(body) < 100
    if status == 404:
        assert body == b"there is no such page\n" and headers["content-security-policy"].startswith("default-src 'none'")


def test_a_page_can_only_be_read(port: int) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        for target in ("/", "/v2.html"):
            status, headers, body = ask(port, target, method)
            assert (status, body) == (405, b"these pages can only be read\n") and set(headers["allow"].split(", ")) == {"GET", "HEAD"}
    status, headers, body = ask(port, "/v2.html", "HEAD")
    assert (status, body) == (200, b"") and headers["content-length"] == "32"


def test_every_answer_says_what_a_browser_may_do_with_it(port: int) -> None:
    for target in ("/", "/v2.html", "/drift-2026-03-31.html", "/drift-2026-03-31.json"):
        headers = ask(port, target)[1]
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "script-src" not in headers["content-security-policy"] and "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer" and headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers and "set-cookie" not in headers and "access-control-allow-origin" not in headers


def test_evidentlys_report_gets_an_origin_of_its_own(port: int, pages: Path) -> None:
    name = "drift-2026-03-30-columns.html"
    durable.write_text(pages / name, "<script>1</script>")
    policy = ask(port, f"/{name}")[1]["content-security-policy"]
    assert (
        policy.startswith("sandbox allow-scripts; default-src 'none'") and "connect-src" not in policy and "allow-same-origin" not in policy
    )


def test_a_name_that_points_here_from_elsewhere_is_not_answered(port: int) -> None:
    assert ask(port, "/", Host=f"evil.example:{port}")[0] == 400
    assert ask(port, "/", Host=f"localhost:{port}")[0] == 200


def test_the_index_lists_days_newest_first_with_state_and_counts(pages: Path) -> None:
    html = listing(pages, pages.parent)
    rows = [words(row).strip() for row in html.split("<h2>Days</h2>")[1].split("</table>")[0].split("<tr>")[2:]]
    assert len(rows) == 31 and rows[0] == "2026-03-31 broken, labels open 1 page, 1 ticket input:cand_price"
    assert rows[1] == "2026-03-30 broken 1 page input:cand_price" and rows[2] == "2026-03-29 needs a look 1 ticket input:cand_price"
    assert rows[3].startswith("2026-03-28 quiet")
    assert [row.split(" hapctl")[0] for row in rows[-2:]] == ["2026-02-19 cannot be read", "2026-02-18 cannot be read"]
    assert 'href="drift-2026-03-31.html"' in html and 'href="drift-2026-03-30.html"' not in html, "a day without its page has no link"
    assert html.index(">v10<") < html.index(">v2<") and "v02" not in html and "notes" not in html
    assert "2026-03-31: broken" in words(html.split("<header>")[1].split("</header>")[0]).replace("  ", " ")


def test_the_index_shows_a_day_that_was_looked_at_again(tmp_path: Path) -> None:
    assert "No day was looked at yet" in listing(tmp_path / "none", tmp_path)
    write_report(tmp_path, report(0))
    assert "quiet" in words(listing(tmp_path, tmp_path))
    write_report(tmp_path, broken_month()[-1])
    assert "broken" in words(listing(tmp_path, tmp_path))


def test_text_from_data_is_escaped(tmp_path: Path) -> None:
    finding = Finding(cause=f"input:{EVIL}", severity="page", said=EVIL)
    write_report(tmp_path, replace(report(0), seen=(Seen(watcher="inputs", title=EVIL, findings=(finding,)),)))
    html = listing(tmp_path, Path("/<script>"))
    assert "<script" not in html and html.count("&lt;script&gt;") > 2


@pytest.mark.long
@needs_chromium
def test_a_browser_walks_from_the_index_to_a_day_and_back_to_nothing_else(port: int, tmp_path: Path) -> None:
    with chromium(tmp_path / "profile") as browser, tab(browser, 390) as shown:
        shown.open(f"http://{HOST}:{port}/")
        assert shown.ask("document.documentElement.scrollWidth") == 390
        shown.ask("document.querySelector('header a').click()")
        shown.wait_for("document.readyState === 'complete' && document.title.startsWith('hap 2026-03-31: broken')")
        links = shown.ask("[...document.querySelectorAll('a[href]')].map(one => one.href).filter(one => !one.includes('#'))")
        codes = [ask(port, one.partition(str(port))[2])[0] for one in links]
        assert codes == [200] * 3  # the report as data, and the version twice
        assert [one for one in shown.asked if not one.startswith(f"http://{HOST}:{port}/")] == []
        assert [one for one in shown.said if "favicon" not in one] == []


@pytest.mark.long
@needs_chromium
def test_evidentlys_report_works_in_its_own_origin_and_asks_for_nothing(port: int, pages: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    left, right = (pd.DataFrame({"activity": rng.normal(mean, 1, 500)}) for mean in (0, 2))
    name = "drift-2026-03-29-columns.html"
    durable.write_bytes(pages / name, compare(left, right).html)
    with chromium(tmp_path / "profile") as browser, tab(browser, 390) as shown:
        shown.open(f"http://{HOST}:{port}/{name}")
        shown.wait_for("document.body.innerText.includes(\"Drift in column 'activity'\")")
        assert shown.ask("self.origin") == "null" and shown.asked == [f"http://{HOST}:{port}/{name}"] and shown.said == []
