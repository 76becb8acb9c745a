"""The server tells only what a reader may know, to who may ask, and takes each decision once."""

import http.client
import io
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from PIL import Image
from reviews import decided, desk, material, served, vote

from synthvision.review.desk import Desk
from synthvision.review.server import FILES, Address, _listen, page_version
from synthvision.review.store import Store

JSON = {"Content-Type": "application/json"}


class Client:
    """Speaks HTTP without any of a browser's manners."""

    def __init__(self, url: str) -> None:
        self.host = urlsplit(url).netloc

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        with closing(http.client.HTTPConnection(self.host)) as connection:
            connection.request(method, path, data, {"Host": self.host, **(headers or {})})
            with connection.getresponse() as response:
                return response.status, dict(response.getheaders()), response.read()

    def get(self, path: str, **headers: str) -> Any:
        status, _, data = self.ask("GET", path, headers=headers)
        assert status == 200, data
        return json.loads(data)

    def decide(self, token: str, **values: object) -> tuple[int, Any]:
        fixed = {"id": str(uuid.uuid4()), "reader": "ada", "role": "read", "item": token, "kind": "decide"}
        more = {
            "verdict": "accept",
            "reason": "",
            "note": "",
            "shown_ms": 900,
            "supersedes": "",
            "page": page_version(),
        }
        status, _, data = self.ask("POST", "/api/decisions", {**fixed, **more, **values}, JSON)
        return status, json.loads(data)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "decisions" / "decisions.sqlite") as store:
        yield store


@pytest.fixture
def reviewed(tmp_path: Path, store: Store) -> Desk:
    return desk(material(tmp_path, 12, salt=0.5, repeats=0.25, reads=2, rule="adjudicated"), store)


@pytest.fixture
def client(reviewed: Desk) -> Iterator[Client]:
    with served(reviewed) as url:
        yield Client(url)


def tokens(client: Client, reader: str = "ada", role: str = "read") -> list[str]:
    return [item["token"] for item in client.get(f"/api/queue?reader={quote(reader)}&role={role}")["items"]]


def test_a_reader_is_told_nothing_that_tells_items_apart(client: Client, reviewed: Desk) -> None:
    told = client.get("/api/queue?reader=ada&role=read")
    assert len(told["items"]) == 12 + 6 + 3
    assert {tuple(item) for item in told["items"]} == {("token", "set", "description", "decision", "order")}
    assert {item["decision"] for item in told["items"]} == {None}
    text = json.dumps([told, client.get("/api/study")])
    for secret in ("made-", "real-", "sha256", "salt", "repeat", "synthetic", "similarity"):
        assert secret not in text
    kinds = {item.token: item.shown_as for item in reviewed.items("ada")}
    answers = {kind: set() for kind in ("candidate", "salt", "repeat")}
    for token, kind in kinds.items():
        status, headers, data = client.ask("GET", f"/api/images/{token}?reader=ada&role=read")
        image = Image.open(io.BytesIO(data))
        answers[kind].add(
            (status, image.size, image.mode, tuple(image.info), headers["content-type"], *sorted(headers))
        )
    assert len(set.union(*answers.values())) == 1  # metadata would mark what was generated


def test_nothing_of_others_is_told_before_the_own_decision(client: Client, reviewed: Desk, store: Store) -> None:
    decided(reviewed.material, {"grace": "reject"}, store)
    told = client.get("/api/queue?reader=ada&role=read")
    assert {item["decision"] for item in told["items"]} == {None}
    token = told["items"][0]["token"]
    status, _, data = client.ask("GET", f"/api/findings/{token}?reader=ada&role=read")
    assert status == 403
    assert b"after the own decision" in data
    assert client.decide(token)[0] == 200
    finding = client.get(f"/api/findings/{token}?reader=ada&role=read")
    assert set(finding) == {"similarity", "guide", "fault"}
    assert client.ask("GET", f"/api/findings/{token}?reader=grace&role=read")[0] == 404  # another reader's token


def test_every_kind_of_item_has_a_finding(reviewed: Desk) -> None:
    assert {item.record.sha256 for item in reviewed.items("ada")} <= set(reviewed.findings)
    assert not any(finding.fault for finding in reviewed.findings.values())
    assert {finding.guide for finding in reviewed.findings.values()} <= set(reviewed.material.guides.column("image_id"))


def test_a_decision_sent_twice_counts_once_and_a_late_one_is_told_what_holds(client: Client, store: Store) -> None:
    token, same = tokens(client)[0], str(uuid.uuid4())
    first = client.decide(token, id=same)
    assert first == (200, {"current": {"id": same, "verdict": "accept", "reason": "", "note": ""}})
    assert client.decide(token, id=same) == first
    status, late = client.decide(token, verdict="reject", reason="blurred")
    assert (status, late["current"]["id"]) == (409, same)
    status, undone = client.decide(token, kind="undo", verdict="", supersedes=same)
    assert (status, undone) == (200, {"current": None})
    assert store.verify().count == 2
    (row,) = [item for item in client.get("/api/queue?reader=ada&role=read")["items"] if item["token"] == token]
    assert (row["decision"], row["order"]) == (None, -1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"reason": "ugly", "verdict": "reject"}, "disease.reject_reasons"),
        ({"reason": "other", "verdict": "reject", "note": " "}, "needs a note"),
        ({"reason": "", "verdict": "reject"}, "reason"),
        ({"verdict": "perhaps"}, ""),
        ({"reader": "  "}, "a reader's name"),
        ({"shown_ms": -1}, ""),
        ({"id": "x"}, ""),
        ({"extra": 1}, ""),
        ({"note": "x" * 501}, ""),
    ],
)
def test_a_decision_that_breaks_a_rule_is_refused(values: dict[str, object], words: str, client: Client) -> None:
    status, answer = client.decide(tokens(client)[0], **values)
    assert status == 422
    assert words in answer.get("error", words)


def test_only_named_readers_where_names_are_given(tmp_path: Path, store: Store) -> None:
    with served(desk(material(tmp_path, readers=["ada", "grace"]), store)) as url:
        assert Client(url).ask("GET", "/api/queue?reader=eve&role=read")[0] == 422
        assert Client(url).ask("GET", "/api/queue?reader=grace&role=read")[0] == 200


def test_disagreements_are_settled_without_names(client: Client, reviewed: Desk, store: Store) -> None:
    decided(reviewed.material, {"ada": "accept", "grace": "reject"}, store)
    told = client.get("/api/queue?reader=judge&role=adjudicate")
    assert len(told["items"]) == 12
    assert told["items"][0]["votes"] == [
        {"verdict": "accept", "reason": "", "note": ""}, {"verdict": "reject", "reason": "artefact", "note": ""}
    ]  # fmt: skip
    assert "grace" not in json.dumps(told)
    token = told["items"][0]["token"]
    assert client.ask("GET", f"/api/images/{token}?reader=judge&role=adjudicate")[0] == 200
    assert client.decide(token, reader="judge", role="adjudicate")[0] == 200
    assert len(store.current()) == 2 * 21 + 1  # every vote is kept


def test_every_answer_carries_the_strict_headers(client: Client) -> None:
    token = tokens(client)[0]
    paths = ["/", "/app.js", "/nothing", "/api/study", f"/api/images/{token}?reader=ada&role=read"]
    for path in paths:
        _, headers, _ = client.ask("GET", path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
    types = {
        path: client.ask("GET", path)[1]["content-type"].partition(";")[0] for path in ("/", *map("/{}".format, FILES))
    }
    assert types == {"/": "text/html", **{f"/{name}": kind for name, kind in FILES.items()}}


def test_the_page_has_no_inline_script_or_style_and_asks_nobody_else() -> None:
    page = Path(__file__).parents[1] / "src" / "synthvision" / "review" / "page"
    html = (page / "index.html").read_text()
    assert "<style" not in html
    assert not any(word in html for word in (" style=", "onclick", "javascript:"))
    assert html.count("<script") == html.count('<script type="module" src="/app.js">') == 1
    for file in page.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "", "127.0.0.1.evil.example", "[", "localhost@evil"]
)
def test_a_name_that_is_not_ours_is_refused(host: str, client: Client) -> None:
    assert client.ask("GET", "/api/study", headers={"Host": host})[0] in (400, 421)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "text/plain"}, 415),  # what a form of another site could send
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({**JSON, "Origin": "http://evil.example"}, 403),
        ({**JSON, "Origin": "null"}, 403),
    ],
)
def test_another_site_cannot_decide(headers: dict[str, str], status: int, client: Client, store: Store) -> None:
    body = {"id": str(uuid.uuid4()), "item": tokens(client)[0]}
    assert client.ask("POST", "/api/decisions", body, headers)[0] == status
    assert client.ask("POST", "/api/decisions", b"x" * 20_000, JSON)[0] == 413
    assert store.head().count == 0


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py", "/%2e%2e/server.py", "/page/", "/index.html", "/api/images/../../x?reader=ada&role=read",
        "/api/images/..%2f..%2fmanifest.csv?reader=ada&role=read", "/api/images/made-0?reader=ada&role=read",
        "/api/guides/-1", "/api/guides/3", "/docs", "/openapi.json", "/api/images/", "/static/app.js",
    ],
)  # fmt: skip
def test_there_is_no_way_to_other_files(path: str, client: Client) -> None:
    status, _, data = client.ask("GET", path)
    assert status in (404, 405)
    assert len(data) < 200


def test_an_image_that_was_exchanged_is_not_shown(client: Client, reviewed: Desk) -> None:
    item = reviewed.items("ada")[0]
    reviewed.material.candidates.file(item.record).write_bytes(b"another")
    status, _, data = client.ask("GET", f"/api/images/{item.token}?reader=ada&role=read")
    assert status == 422
    assert b"not the one" in data


def test_beyond_this_machine_a_token_is_needed(tmp_path: Path, store: Store) -> None:
    address = Address("127.0.0.1", 0, ["review.hospital.example"])
    assert address.needs_token
    with served(desk(material(tmp_path), store), "secret-token", address) as url:
        client = Client(url)
        assert client.ask("GET", "/")[0] == 200
        for path in ("/api/study", "/api/queue?reader=ada&role=read", "/api/guides/0"):
            assert client.ask("GET", path)[0] == 401
            assert client.ask("GET", path, headers={"Cookie": "synthvision-review=secret-token"})[0] == 401
        assert client.ask("POST", "/api/session", {"token": "secret-toke"}, JSON)[0] == 401
        status, headers, _ = client.ask("POST", "/api/session", {"token": "secret-token"}, JSON)
        assert status == 204
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert client.ask("GET", "/api/study", headers={"Cookie": cookie.partition(";")[0]})[0] == 200
        there = {"Host": "review.hospital.example", "Cookie": cookie.partition(";")[0]}
        assert client.ask("GET", "/api/study", headers=there)[0] == 200


@pytest.mark.parametrize(
    ("host", "token"), [("127.0.0.1", False), ("localhost", False), ("::1", False), ("10.1.2.3", True)]
)
def test_loopback_needs_no_token(host: str, token: bool) -> None:
    assert Address(host, 1, []).needs_token == token


@pytest.mark.parametrize(
    ("host", "port", "key"), [("0.0.0.0", 1, "host"), ("", 1, "host"), ("localhost", 70000, "port")]
)
def test_an_address_names_its_key(host: str, port: int, key: str) -> None:
    with pytest.raises(ValueError, match=rf"stage\.{key} must be"):
        Address(host, port, [])


def test_a_port_that_is_taken_is_said(client: Client) -> None:
    port = int(client.host.rpartition(":")[2])
    with pytest.raises(ValueError, match=rf"stage\.port={port}: .*set another one"):
        _listen(Address("127.0.0.1", port, []))


def test_a_reader_goes_on_where_the_last_decision_was(client: Client, reviewed: Desk, store: Store) -> None:
    for number, item in enumerate(reviewed.items("ada")[:5]):
        store.add(vote(item, "ada", "accept", number))
    rows = client.get("/api/queue?reader=ada&role=read")["items"]
    assert [row["decision"] is not None for row in rows] == [True] * 5 + [False] * 16
    assert [row["order"] for row in rows[:5]] == sorted(row["order"] for row in rows[:5])
