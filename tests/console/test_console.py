"""The console in a real browser, on the real service: a person sees what the log says, and only that."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Dialog, Page, Request, Route, expect

from tests.console.conftest import Service

browser_test = pytest.mark.browser

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'none'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

PAYLOADS = {
    "script": "</p><script>window.ran=1;alert(1)</script>",
    "img": '<img src=x onerror="window.ran=1;alert(1)">',
    "leak": "<img src=/v1/leak><link rel=stylesheet href=/v1/leak>",
    "svg": "<svg/onload=alert(1)><animate onbegin=alert(1) attributeName=x></svg>",
    "frame": "<iframe srcdoc='<script>parent.ran=1</script>'></iframe><base href=//x>",
    "javascript": "[click](javascript:alert(1)) javascript:alert(1)",
    "template": "${alert(1)} {{constructor.constructor('alert(1)')()}}",
    "clipboard": "before\x1b]52;c;cHduZWQ=\x07after",
    "colour": "\x1b[31mred\x1b[0m",
    "bidi": "safe\u202egnp.exe\u2066x\u2069",
    "nul": "a{nul}b",
}
"""What an agent may say. `{nul}` is made a NUL by the hostile agent, for a prompt cannot hold one."""


COMMANDS = ("say", "think", "run", "read", "edit", "plan")
"""What the demo agent can put a payload into."""


def literally(payload: str) -> str:
    """`payload` as it has to be seen where nothing may be left out."""
    visible = {"\x1b": "␛", "\x07": "␇", "\u202e": "⟨U+202E⟩", "\u2066": "⟨U+2066⟩", "\u2069": "⟨U+2069⟩"}
    text = "".join(visible.get(character, character) for character in payload)
    return text.replace("{nul}", "\ufffd")  # PostgreSQL holds no NUL


def without_ansi(payload: str) -> str:
    """`payload` as it has to be seen in what agents and programs say."""
    return literally(re.sub(r"\x1b\[\d*m|\x1b\]52[^\x07]*\x07", "", payload))


def enter(page: Page, service: Service, fragment: str = "") -> None:
    """Open the console with the key in the address, as the start of the service prints it."""
    page.goto(f"{service.url}/console#key={service.key}{fragment}")


def prompt_new(page: Page, prompt: str) -> str:
    """Make a session with a prompt, on the page; returns the session's id."""
    page.get_by_label("First prompt").fill(prompt)
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#session-view")).to_be_visible()
    return page.url.partition("#session=")[2]


def make_session(service: Service, agent: str, prompt: str) -> str:
    """Make a session with a prompt, by the API; returns the session's id."""
    made = service.call("POST", "/v1/sessions", {"agent": agent, "backend": agent})
    service.call("POST", f"/v1/sessions/{made['session_id']}/turns", {"prompt": prompt})
    return str(made["session_id"])


def messages_in_log(events: list[dict[str, Any]]) -> list[str]:
    """The agent's messages: whole, or as far as they came."""
    texts: dict[str, str] = {}
    for event in events:
        data = event["data"]
        match event["type"]:
            case "message.delta":
                texts[data["message_id"]] = texts.get(data["message_id"], "") + data["text"]
            case "message.completed":
                texts[data["message_id"]] = data["text"]
    return list(texts.values())


def messages_on_page(page: Page) -> list[str]:
    return page.locator(".message .text").all_text_contents()


def is_ours(url: str, service: Service) -> bool:
    """Whether the page itself asks for `url`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" == service.url and (
        parts.path in ("/console", "/v1/backends", "/v1/sessions", "/v1/stream-tickets")
        or re.fullmatch(r"/console/static/\w+\.(js|css)", parts.path) is not None
        or re.fullmatch(r"/v1/(sessions|permissions|backends)/[\w-]+(/[\w/]+)?", parts.path) is not None
    )


def what_goes_wrong(page: Page, service: Service) -> list[str]:
    """A list that fills with every sign of agents' output having done something."""
    wrong: list[str] = []

    def on_dialog(dialog: Dialog) -> None:
        wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def on_request(request: Request) -> None:
        if not is_ours(request.url, service):
            wrong.append(f"request: {request.url}")

    def on_console(message: ConsoleMessage) -> None:
        wrong.append(f"console: {message.text}")

    page.on("dialog", on_dialog)
    page.on("request", on_request)
    page.on("console", on_console)
    page.on("popup", lambda popup: wrong.append(f"popup: {popup.url}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    return wrong


def control(name: str, **data: Any) -> str:
    """A control frame of a stream."""
    return f"event: stream.{name}\ndata: {json.dumps(data)}\n\n"


SYNCED = control("synced", last_seq=0)


def opening(after: int, last: int) -> str:
    """How a stream begins; the browser is told to come back soon."""
    ready = control("ready", session_id="s", after=after, oldest_seq=1, last_seq=last)
    return f"retry: 50\n\n{ready}"


def said(seq: int) -> str:
    """A message's frame on a stream."""
    data = {"message_id": f"msg_{seq}", "role": "assistant", "text": f"said {seq}"}
    event = {"seq": seq, "type": "message.completed", "turn_id": "trn_1", "at": "2026-01-01T00:00:00.000Z"}
    return f"id: {seq}\nevent: message.completed\ndata: {json.dumps(event | {'data': data})}\n\n"


# The files


def test_page_is_served_with_a_policy_that_lets_only_its_own_files_run(service: Service) -> None:
    for path, media_type in [
        ("/", "text/html"),
        ("/console", "text/html"),
        ("/console/static/console.js", "text/javascript"),
        ("/console/static/console.css", "text/css"),
    ]:
        answer = httpx.get(service.url + path, trust_env=False)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"
        again = httpx.get(
            service.url + path, headers={"If-None-Match": answer.headers["etag"]}, trust_env=False
        )
        assert (again.status_code, again.content) == (304, b"")
        head = httpx.head(service.url + path, trust_env=False)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(answer.content))


def test_page_holds_no_script_or_style_of_its_own_and_every_module_that_it_names_is_served(
    service: Service,
) -> None:
    page = httpx.get(service.url, trust_env=False).text
    assert re.findall(r"<style|<script(?![^>]* src=)|\s(?:style|on\w+)=", page) == []
    waiting = re.findall(r"(?:src|href)=\"([^\"]+)\"", page)
    seen = set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            answer = httpx.get(f"{service.url}/{path}", trust_env=False)
            assert answer.status_code == 200, path
            waiting += [f"console/static/{name}" for name in re.findall(r'from "\./([^"]+)"', answer.text)]
    files = {path.name for path in (Path(__file__).parents[2] / "app/console/static").iterdir()}
    assert {path.rpartition("/")[2] for path in seen} == files - {"index.html"}


@pytest.mark.parametrize("name", ["pages.py", "..%2fpages.py", "%2e%2e/pages.py", "index.html", ""])
def test_no_other_file_is_served(service: Service, name: str) -> None:
    answer = httpx.get(f"{service.url}/console/static/{name}", trust_env=False)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


# The key


@browser_test
def test_key_in_the_address_is_taken_out_and_kept_for_this_tab_only(
    context: BrowserContext, page: Page, service: Service
) -> None:
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request))
    enter(page, service)
    expect(page.get_by_role("heading", name="New session")).to_be_visible()
    assert page.url == f"{service.url}/console"
    page.reload()
    session_id = prompt_new(page, "say hello")
    expect(page.locator(".message .text")).to_have_text("hello")
    assert page.url == f"{service.url}/console#session={session_id}"
    secret = service.key.rpartition("_")[2]
    assert len(asked) > 5
    assert [request.url for request in asked if secret in request.url] == []
    assert [request.url for request in asked if "referer" in request.all_headers()] == []
    assert page.evaluate("() => [Object.keys(localStorage).length, document.cookie]") == [0, ""]
    assert page.evaluate("() => Object.values(sessionStorage)") == [service.key]
    other = context.new_page()
    other.goto(f"{service.url}/console")
    expect(other.get_by_label("Key", exact=True)).to_be_visible()


@browser_test
def test_key_can_be_typed_and_a_wrong_one_is_refused(page: Page, service: Service) -> None:
    page.goto(service.url)
    field = page.get_by_label("Key", exact=True)
    field.fill("alm_wrong_" + "x" * 43)
    field.press("Enter")
    expect(page.get_by_role("alert")).to_have_text("The server does not take this key.")
    assert page.evaluate("() => sessionStorage.length") == 0
    field.fill(service.key)
    field.press("Enter")
    expect(page.get_by_role("heading", name="New session")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_role("button", name="Forget key").click()
    expect(field).to_be_visible()
    assert page.evaluate("() => sessionStorage.length") == 0


@browser_test
def test_no_key_is_asked_for_where_the_service_wants_none(page: Page, service: Service) -> None:
    service.terminate()
    service.start(ALAMEDA_AUTH="none")
    page.goto(service.url)
    prompt_new(page, "say hello")
    expect(page.locator(".message .text")).to_have_text("hello")
    assert page.evaluate("() => sessionStorage.length") == 0
    service.terminate()
    service.start()


# What the agent does


@browser_test
def test_prompt_of_the_demo_agent_shows_what_it_says_and_does(
    page: Page, service: Service, tmp_path: Path
) -> None:
    enter(page, service)
    expect(page.get_by_label("Backend")).to_have_value("demo")
    prompt = (
        "think about it\nplan look; leap\nread src/a.py\nedit src/a.py\nrun ls -l\ntokens 12 34\nstream 99 20"
    )
    session_id = prompt_new(page, prompt)
    expect(page.locator(".prompt-item .text")).to_have_text(prompt)
    expect(page.locator(".growing")).to_be_visible()
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator(".line[data-tone=good]")).to_contain_text("Completed")
    expect(page.locator(".growing")).to_have_count(0)

    assert messages_on_page(page) == messages_in_log(service.events(session_id))
    expect(page.locator(".message .text")).to_have_text("".join(f"chunk-{n} " for n in range(1, 100)))
    expect(page.locator(".reasoning .text")).to_be_hidden()
    page.get_by_text("Reasoning").click()
    expect(page.locator(".reasoning .text")).to_have_text("about it")
    expect(page.locator(".plan li[data-status=completed]")).to_have_count(2)
    expect(page.locator(".tool")).to_have_count(3)
    expect(page.locator(".tool .badge")).to_have_text(["completed"] * 3)
    expect(page.locator(".tool .title")).to_have_text(["Read src/a.py", "Edit src/a.py", "ls -l"])
    expect(page.locator(".diff .removed")).to_have_text("-old")
    expect(page.locator(".diff .added")).to_have_text("+new")
    expect(page.locator(".tool").last.locator("pre")).to_have_text("pretended: ls -l\n")
    expect(page.locator(".line[data-tone=good]")).to_contain_text("12 tokens in, 34 out")
    expect(page.locator("#session-facts")).to_contain_text("demo-1 · mode default · thinking off")
    expect(page.locator(".session-row").first).to_contain_text("idle")
    page.screenshot(path=tmp_path / "demo.png")


@browser_test
@pytest.mark.parametrize(("answer", "outcome"), [("Allow", "allowed"), ("Deny", "denied")])
def test_permission_waits_for_a_person_and_is_answered_by_a_button(
    page: Page, service: Service, answer: str, outcome: str, tmp_path: Path
) -> None:
    enter(page, service)
    session_id = prompt_new(page, "ask Deploy?")
    card = page.locator(".permission")
    expect(card.locator(".title")).to_have_text("Deploy?")
    expect(card.get_by_role("button")).to_have_text(["Allow", "Always allow", "Deny"])
    expect(page.locator("#session-activity")).to_have_text("requires action")
    expect(page.locator(".session-row").first).to_contain_text("waits for you")
    expect(page).to_have_title(re.compile(r"^\(!\) "))
    page.screenshot(path=tmp_path / "permission.png")
    card.get_by_role("button", name=answer, exact=True).click()
    expect(card.locator(".badge")).to_have_text(outcome)
    expect(card.get_by_role("button")).to_have_count(0)
    expect(page.locator(".message .text")).to_have_text(outcome)
    resolved = [
        event["data"] for event in service.events(session_id) if event["type"] == "permission.resolved"
    ]
    assert [(data["outcome"], data["by"]) for data in resolved] == [(outcome, "caller")]
    expect(page.locator("#session-activity")).to_have_text("idle")


@browser_test
def test_question_is_answered_by_a_choice_or_by_words(page: Page, service: Service) -> None:
    enter(page, service)
    prompt_new(page, "question Which colour? | red | blue\nquestion Your name?")
    page.get_by_label("blue").check()
    page.get_by_role("button", name="Answer").click()
    expect(page.locator(".message .text")).to_have_text("you said: blue")
    page.get_by_label("Your name?").fill("Ann <b>")
    page.get_by_label("Your name?").press("Enter")
    expect(page.locator(".message .text")).to_have_text(["you said: blue", "you said: Ann <b>"])


@browser_test
def test_open_session_is_prompted_by_keyboard_queued_cancelled_and_closed(
    page: Page, service: Service
) -> None:
    enter(page, service)
    session_id = prompt_new(page, "say started\nsleep 60")
    expect(page.locator(".message .text")).to_have_text("started")
    box = page.get_by_label("Next prompt")
    for prompt in ("say second", "say third"):
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        box.fill(prompt)
        box.press("Control+Enter")
        expect(box).to_have_value("")
    queued = page.locator(".line").filter(has_text="Queued")
    expect(queued).to_have_count(2)
    queued.last.get_by_role("button", name="Take out").click()
    expect(page.locator(".line").filter(has_text="Cancelled by caller")).to_have_count(1)
    page.get_by_role("button", name="Cancel turn").click()
    expect(page.locator(".message .text")).to_have_text(["started", "second"])
    expect(page.locator(".line[data-tone=good]")).to_have_count(1)
    expect(page.get_by_role("button", name="Cancel turn")).to_be_hidden()

    page.get_by_role("button", name="Close session").click()
    expect(page.locator("#connection")).to_have_text("The session is closed.")
    expect(box).to_be_hidden()
    page.get_by_role("button", name="Reopen").click()
    expect(page.locator("#connection")).to_have_text("Live")
    box.fill("say fourth")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".message .text")).to_have_text(["started", "second", "fourth"])
    assert messages_on_page(page) == messages_in_log(service.events(session_id))


@browser_test
def test_failure_is_said_in_the_words_of_the_server(page: Page, service: Service) -> None:
    enter(page, service)
    prompt_new(page, "fail The provider said no")
    expect(page.locator(".line[data-tone=error]")).to_contain_text("The provider said no")
    page.get_by_role("button", name="New session").click()
    page.get_by_label("Working directory").fill("/etc")
    page.get_by_label("First prompt").fill("say hello")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_role("alert").first).not_to_be_empty()
    expect(page.get_by_label("First prompt")).to_have_value("say hello")


# Whatever happens to the connection


@browser_test
@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_restart_in_mid_stream_loses_and_doubles_nothing(page: Page, service: Service, end: str) -> None:
    enter(page, service)
    session_id = prompt_new(page, "stream 200 50")
    message = page.locator(".message .text").last
    expect(message).to_contain_text("chunk-10 ")
    getattr(service, end)()
    expect(page.locator("#connection")).to_have_text("Reconnecting…")
    service.start()
    expect(page.locator("#connection")).to_have_text("Live")
    ending = "Indeterminate" if end == "kill" else "Cancelled"
    expect(page.locator(".line").filter(has_text=ending)).to_have_count(1)
    box = page.get_by_label("Next prompt")
    box.fill("say after")
    box.press("Control+Enter")
    expect(page.locator(".line[data-tone=good]")).to_have_count(1)

    logged = messages_in_log(service.events(session_id))
    assert messages_on_page(page) == logged
    streamed, after = logged
    assert after == "after"
    numbers = [int(number) for number in re.findall(r"chunk-(\d+) ", streamed)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 10


@browser_test
def test_p25_refused_stream_is_opened_anew_with_another_ticket_from_the_last_event_on(
    page: Page, service: Service
) -> None:
    """Any status but 200 ends an EventSource for good."""
    enter(page, service)
    session_id = prompt_new(page, "say one")
    expect(page.locator(".line[data-tone=good]")).to_have_count(1)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/events/stream" in request.url else None)
    last = service.events(session_id)[-1]["seq"]
    page.route("**/events/stream?*", lambda route: route.fulfill(status=503, body="no"))
    page.reload()
    expect(page.locator("#connection")).to_have_text("Reconnecting…")
    page.unroute_all()
    expect(page.locator("#connection")).to_have_text("Live")
    expect(page.locator(".message .text")).to_have_text(["one"])

    # A stream that lives, once more: the server goes, and refuses when it is back.
    service.kill()
    expect(page.locator("#connection")).to_have_text("Reconnecting…")
    page.route("**/events/stream?*", lambda route: route.fulfill(status=503, body="no"))
    service.start()
    refused = len(asked)
    while len(asked) < refused + 2:
        page.wait_for_timeout(50)
    page.unroute_all()
    expect(page.locator("#connection")).to_have_text("Live")
    assert f"after={last}" in asked[-1].split("&")
    tickets = [re.search(r"ticket=([^&]+)", url) for url in asked]
    assert len({ticket[1] for ticket in tickets if ticket}) >= 4
    assert messages_on_page(page) == ["one"]


@browser_test
def test_stream_that_repeats_itself_is_refused_taken_over_and_reset_shows_each_event_once(
    page: Page, service: Service
) -> None:
    session_id = make_session(service, "demo", "say hello")
    asked: list[Request] = []
    refused = control("closing", reason="too_many_streams")
    taken_over = control("closing", reason="superseded")
    closed = control("closing", reason="session_closed")
    stalled = control("stalled", reason="database_unavailable") + control("resumed", last_seq=5)
    reset = control("reset", reason="expired", resume_from=80, snapshot_url="") + "id: 80\n\n"
    streams = iter(
        [
            opening(0, 3) + said(1) + said(2) + said(3) + SYNCED,
            opening(1, 4) + said(2) + said(3) + said(4) + SYNCED,
            opening(4, 4) + SYNCED + stalled + said(5),
            refused,
            taken_over,
            opening(5, 90) + reset + said(81) + SYNCED,
            opening(81, 82) + said(82) + SYNCED + closed,
        ]
    )

    def answer(route: Route) -> None:
        asked.append(route.request)
        route.fulfill(content_type="text/event-stream", body=next(streams))

    page.route("**/events/stream?*", answer)
    enter(page, service, f"&session={session_id}")
    expect(page.locator("#connection")).to_have_text("A newer stream took over.")
    expect(page.locator(".message .text")).to_have_text([f"said {seq}" for seq in range(1, 6)])
    page.get_by_role("button", name="Reconnect").click()
    expect(page.locator("#connection")).to_have_text("The session is closed.")
    expect(page.locator(".message .text")).to_have_text(["said 81", "said 82"])
    expect(page.locator(".line")).to_contain_text("does not reach back")
    queries = [parse_qs(urlsplit(request.url).query) for request in asked]
    assert [query.get("after") for query in queries] == [None, None, None, None, ["5"], ["5"], ["5"]]
    tickets = [query["ticket"][0] for query in queries]
    assert [tickets.index(ticket) for ticket in tickets] == [0, 0, 0, 0, 4, 5, 5]


@browser_test
def test_p28_page_has_one_stream_however_many_sessions_were_opened(page: Page, service: Service) -> None:
    ids = [make_session(service, "demo", f"say in {number}") for number in range(8)]
    enter(page, service)
    for number, session_id in enumerate(ids):
        page.locator(f".session-row[title='{session_id}']").click()
        expect(page.locator(".message .text")).to_have_text(f"in {number}")
    box = page.get_by_label("Next prompt")
    box.fill("say still here")
    box.press("Control+Enter")
    expect(page.locator(".message .text").last).to_have_text("still here")
    open_streams = service.call("GET", "/health")["streams"]["open"]
    assert open_streams == 1


# Agents' output is data


@browser_test
def test_t28_nothing_that_an_agent_says_runs_or_hides(page: Page, service: Service, tmp_path: Path) -> None:
    wrong = what_goes_wrong(page, service)
    lines = [f"{command} {payload}" for payload in PAYLOADS.values() for command in COMMANDS]
    session_id = make_session(service, "hostile", "\n".join(lines))
    enter(page, service, f"&session={session_id}")
    expect(page.locator(".line[data-tone=good]")).to_have_count(1)
    expect(page.locator("#connection")).to_have_text("Live")

    payloads = list(PAYLOADS.values())
    assert messages_on_page(page) == [without_ansi(payload) for payload in payloads]
    thoughts = page.locator(".reasoning .text").all_text_contents()
    assert "".join(thoughts) == "".join(without_ansi(payload) for payload in payloads)
    titles = page.locator(".tool .title").all_text_contents()
    assert titles == [
        prefix + literally(payload) for payload in payloads for prefix in ("", "Read ", "Edit ")
    ]
    outputs = page.locator(".tool pre").all_text_contents()
    assert [f"pretended: {without_ansi(payload)}\n" in outputs for payload in payloads] == [True] * len(
        payloads
    )
    assert page.locator(".plan li").all_text_contents() == [f"{literally(payloads[-1])} (completed)"]
    assert page.evaluate("() => window.ran") is None
    assert page.locator("#log :is(script, img, svg, iframe, style, link, base, a)").count() == 0
    page.screenshot(path=tmp_path / "hostile.png")
    assert wrong == []


@browser_test
def test_t28_what_is_to_be_approved_is_shown_letter_by_letter(
    page: Page, service: Service, tmp_path: Path
) -> None:
    wrong = what_goes_wrong(page, service)
    session_id = make_session(
        service, "hostile", "\n".join(f"ask {payload}" for payload in PAYLOADS.values())
    )
    enter(page, service, f"&session={session_id}")
    for payload in PAYLOADS.values():
        card = page.locator(".permission.pending")
        expect(card.locator(".title")).to_have_text(literally(payload))
        card.get_by_role("button", name="Deny").click()
        expect(card.locator(".title").filter(has_text=literally(payload))).to_have_count(0)
    expect(page.locator(".line[data-tone=good]")).to_have_count(1)
    page.screenshot(path=tmp_path / "approval.png")
    assert page.evaluate("() => window.ran") is None
    assert wrong == []


@browser_test
def test_t28_line_of_a_megabyte_is_clipped_until_somebody_wants_it(
    page: Page, service: Service, tmp_path: Path
) -> None:
    session_id = make_session(service, "hostile", "say {long}\nrun {long}\nsay end")
    enter(page, service, f"&session={session_id}")
    expect(page.locator(".line[data-tone=good]")).to_have_count(1)
    texts = messages_on_page(page)
    assert (texts[0], texts[-1]) == ("x" * 20_000, "end")
    assert len(page.locator(".tool .title").text_content() or "") <= 400
    page.screenshot(path=tmp_path / "long.png")
    page.locator(".message").first.get_by_role("button", name="Show all").click()
    assert messages_on_page(page)[0] == messages_in_log(service.events(session_id))[0]


@browser_test
def test_long_log_keeps_the_page_small_and_says_what_is_not_shown(page: Page, service: Service) -> None:
    script = "\n".join(f"say line {number}" for number in range(1000))
    session_id = make_session(service, "demo", script)
    enter(page, service, f"&session={session_id}")
    expect(page.locator(".line[data-tone=good]")).to_have_count(1)
    expect(page.get_by_text("Older events are not shown here")).to_be_attached()
    texts = messages_on_page(page)
    assert texts == [f"line {number}" for number in range(1000)][-len(texts) :]
    assert 300 < len(texts) <= 450
    assert page.evaluate("() => document.querySelectorAll('*').length") < 5000
