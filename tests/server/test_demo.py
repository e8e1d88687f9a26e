"""The demo page, in a real Chromium."""

import hashlib
import os
import re
import shutil
import time
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import ConsoleMessage, Page, expect, sync_playwright

from tests.server.wire import error, post

CHROMIUM = shutil.which("chromium")
WEB = os.environ.get("JAXCNN_ONNXRUNTIME_WEB", "")

in_browser = pytest.mark.skipif(not WEB, reason="JAXCNN_ONNXRUNTIME_WEB is not set")


def picture(background: str = "red", spot: str = "lime", size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Draws a spot at the lower right, where the model's heat map is hot."""
    image = Image.new("RGB", size, background)
    width, height = size
    ImageDraw.Draw(image).ellipse([width * 0.62, height * 0.62, width * 0.88, height * 0.88], fill=spot)
    return image


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def seeing(serve_module, model_builder, tmp_path_factory):
    path = model_builder(tmp_path_factory.mktemp("seeing") / "colours.onnx", heatmap=True)
    settings = {"JAXCNN_ONNXRUNTIME_WEB": WEB} if WEB else {}
    with serve_module(JAXCNN_MODEL=str(path), **settings) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: `apt-get install chromium`")
    flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync_playwright() as playwright:
        it = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield it
        it.close()


@pytest.fixture
def open_page(browser):
    """Opens pages; checks at the end that none logged an error or sent a request to another host."""
    contexts, complaints, hosts = [], [], set()

    def go(server, **options: object) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(describe(message)) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: hosts.add(re.sub(r"^(blob:)?(\w+://[^/]*|data:).*", r"\2", request.url)))
        page.goto(f"http://127.0.0.1:{server.port}/")
        return page

    yield go
    for context in contexts:
        context.close()
    expected = r"status of (400|401|413|502)|status of 404 .*/model\.onnx\?"
    assert [complaint for complaint in complaints if not re.search(expected, complaint)] == []
    assert len(hosts - {"data:"}) == 1


def describe(message: ConsoleMessage) -> str:
    return f"{message.text} {message.location['url']}"


def choose(page: Page, data: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": kind, "buffer": data})


def shares(page: Page) -> dict[str, float]:
    """Returns the names and percentages of the bars, after checking that the widths of the bars agree."""
    expect(page.locator("body")).not_to_have_class(re.compile("busy"))
    found = {}
    for bar in page.locator("#bars li").all():
        share = float(bar.locator(".share").inner_text().rstrip("%"))
        width = float(bar.locator(".bar").evaluate("it => it.style.width").rstrip("%"))
        assert width == pytest.approx(share, abs=0.051)
        found[bar.locator(".name").inner_text()] = share
    return found


def test_a_chosen_picture_is_named(open_page, seeing):
    page = open_page(seeing)
    expect(page.locator("#model")).to_have_text("colours: 5 classes, 8 by 8 pixels")
    choose(page, encode(picture()))
    expect(page.locator("#bars li")).to_have_count(5)
    expected = post(seeing.client, encode(picture()), params={"top_k": 5}).json()["top_predictions"]
    assert shares(page) == pytest.approx({guess["class"]: guess["prob"] * 100 for guess in expected}, abs=0.051)
    assert next(iter(shares(page))) == "red"
    expect(page.locator("#latency")).to_have_text(re.compile(r"^\d+ ms, including the network$"))
    assert page.locator("#picture").evaluate("it => it.naturalWidth") == 320


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_a_dropped_or_pasted_picture_is_named(open_page, seeing, way):
    page = open_page(seeing)
    page.evaluate(
        """([way, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File(["a note"], "note.txt", { type: "text/plain" }));
            data.items.add(new File([new Uint8Array(bytes)], "picture.png", { type: "image/png" }));
            const event = way === "drop"
                ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
            document.body.dispatchEvent(event);
        }""",
        [way, [*encode(picture("blue", "blue"))]],
    )
    expect(page.locator("#bars li .name").first).to_have_text("blue")


def test_the_camera(open_page, seeing):
    page = open_page(seeing, permissions=["camera"])
    page.click("#camera")
    expect(page.locator("#shoot")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#viewfinder")).to_be_hidden()
    page.click("#camera")
    page.locator("#video").evaluate("it => it.videoWidth || new Promise(done => { it.onresize = done; })")
    page.click("#shoot")
    expect(page.locator("#bars li")).to_have_count(5)
    expect(page.locator("#viewfinder")).to_be_hidden()
    assert page.locator("#video").evaluate("it => it.srcObject") is None


def keep_streams(page: Page, *, delays: tuple[int, ...] = (0, 0)) -> None:
    """Collects the camera's streams, and makes the browser deliver each after a delay in milliseconds."""
    page.evaluate(
        """delays => {
            const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            window.streams = [];
            navigator.mediaDevices.getUserMedia = async constraints => {
                const delay = delays.shift();
                const stream = await ask(constraints);
                await new Promise(done => setTimeout(done, delay));
                window.streams.push(stream);
                return stream;
            };
        }""",
        list(delays),
    )


def wait_for_tracks(page: Page, *states: str) -> None:
    now = "streams.flatMap(stream => stream.getTracks()).map(track => track.readyState).sort().join()"
    page.wait_for_function(f"wanted => {now} === wanted", arg=",".join(states), timeout=5000)


def test_a_camera_that_has_shown_nothing_yet_takes_no_picture(open_page, seeing):
    page = open_page(seeing, permissions=["camera"])
    page.evaluate("Object.defineProperty(HTMLVideoElement.prototype, 'videoWidth', { get: () => 0 })")
    page.click("#camera")
    page.click("#shoot")
    expect(page.locator("#viewfinder")).to_be_visible()
    expect(page.locator("#figure")).to_be_hidden()
    expect(page.locator("#message")).to_have_text("")
    page.keyboard.press("Escape")


def test_the_camera_again_stops_the_one_before(open_page, seeing):
    page = open_page(seeing, permissions=["camera"])
    keep_streams(page)
    page.click("#camera")
    expect(page.locator("#shoot")).to_be_focused()
    page.click("#camera")
    wait_for_tracks(page, "ended", "live")
    expect(page.locator("#shoot")).to_be_focused()
    page.click("#close-camera")
    wait_for_tracks(page, "ended", "ended")


@pytest.mark.parametrize("delays", [(0, 200), (200, 0), (0, 0)])
def test_the_camera_twice_before_it_opens(open_page, seeing, delays):
    page = open_page(seeing, permissions=["camera"])
    keep_streams(page, delays=delays)
    page.evaluate("() => { const button = document.getElementById('camera'); button.click(); button.click(); }")
    wait_for_tracks(page, "ended", "live")
    expect(page.locator("#shoot")).to_be_focused()
    page.click("#close-camera")
    wait_for_tracks(page, "ended", "ended")
    expect(page.locator("#message")).to_be_hidden()


def test_a_camera_that_cannot_be_used_is_reported(open_page, seeing):
    page = open_page(seeing)
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new Error()); }")
    page.click("#camera")
    expect(page.locator("#message")).to_contain_text("The camera cannot be used")
    expect(page.locator("#picture")).to_be_hidden()


def opacity(page: Page) -> list[list[int]]:
    """Returns the alpha of each cell of the heat map."""
    return page.locator("#heatmap").evaluate(
        """it => {
            const { data } = it.getContext("2d").getImageData(0, 0, it.width, it.height);
            const alpha = data.filter((_, i) => i % 4 === 3);
            return Array.from({ length: it.height }, (_, y) => [...alpha.slice(y * it.width, (y + 1) * it.width)]);
        }"""
    )


def test_the_heat_map_lies_over_the_picture(open_page, seeing):
    page = open_page(seeing)
    choose(page, encode(picture()))
    expect(page.locator("#heatmap")).to_be_visible()
    cells = opacity(page)
    assert [len(row) for row in cells] == [2] * 4
    assert sum(map(sum, cells)) == cells[2][1] + cells[3][1] > 0
    assert page.locator("#heatmap").bounding_box() == page.locator("#picture").bounding_box()
    page.uncheck("#show-heatmap")
    expect(page.locator("#heatmap")).to_be_hidden()
    choose(page, encode(picture("blue")))
    expect(page.locator("#bars li .name").first).to_have_text("blue")
    expect(page.locator("#heatmap")).to_be_hidden()


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        ({"mode": "crop", "side": 16}, (320, 240), (0.375, 0.5)),
        ({"mode": "crop", "side": 10}, (240, 300), (0.8, 0.64)),
        ({"mode": "pad", "side": None}, (320, 240), (1, 4 / 3)),
        ({"mode": "pad", "side": None}, (240, 300), (1.25, 1)),
    ],
)
def test_the_heat_map_lies_over_what_the_model_sees(open_page, seeing, resize, size, expected):
    content = seeing.client.get("/model.json").json()
    page = open_page(seeing)
    page.route("**/model.json", lambda route: route.fulfill(json={**content, "resize": content["resize"] | resize}))
    page.reload()
    choose(page, encode(picture(size=size)))
    expect(page.locator("#heatmap")).to_be_visible()
    shown, heat = page.locator("#picture").bounding_box(), page.locator("#heatmap").bounding_box()
    for side, start, share in (("width", "x", expected[0]), ("height", "y", expected[1])):
        assert heat[side] == pytest.approx(share * shown[side], abs=0.1)
        assert heat[start] + heat[side] / 2 == pytest.approx(shown[start] + shown[side] / 2, abs=0.1)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_file_without_a_heat_map_shows_none(open_page, server):
    page = open_page(server)
    choose(page, encode(picture()))
    expect(page.locator("#bars li")).to_have_count(5)
    expect(page.locator("#heatmap")).to_be_hidden()
    expect(page.locator("#heatmap-switch")).to_be_hidden()
    expect(page.locator("#local")).to_be_disabled()
    expect(page.locator("#local-note")).to_contain_text("not set up")


def test_a_picture_that_is_too_large_for_the_server_is_not_sent(open_page, server):
    page = open_page(server)
    posts = []
    page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
    choose(page, bytes(1_000_001))
    text = "The picture has 1.1 MB, but the server accepts at most 1 MB: scale it down."
    expect(page.locator("#message.wrong")).to_have_text(text)
    assert posts == []
    choose(page, encode(picture()))
    expect(page.locator("#bars li")).to_have_count(5)


def test_an_error_of_the_server_is_shown(open_page, seeing):
    page = open_page(seeing)
    choose(page, encode(picture()))
    expect(page.locator("#bars li")).to_have_count(5)
    choose(page, b"no picture")
    expect(page.locator("#message.wrong")).to_contain_text("This is not a picture in a supported format")
    expect(page.locator("#again")).to_be_hidden()
    expect(page.locator("#bars li")).to_have_count(0)
    expect(page.locator("#heatmap")).to_be_hidden()
    expect(page.locator("#picture")).to_be_hidden()
    choose(page, encode(picture()))
    expect(page.locator("#picture")).to_be_visible()


def test_messages_appear_where_screen_readers_listen_already(open_page, seeing):
    page = open_page(seeing)
    assert page.get_by_role("status").count() == 1  # Hidden elements have no role.
    choose(page, b"a note", "note.txt", "text/plain")
    expect(page.get_by_role("status")).to_contain_text("not a picture file")


def test_by_keyboard_alone(open_page, seeing):
    page = open_page(seeing)
    if WEB:
        expect(page.locator("#local")).to_be_enabled()  # As it is once the page knows the model.
    seen = []
    for _ in range(4):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    expected = ["file", "camera", "local"] if WEB else ["file", "camera"]
    assert seen[: len(expected)] == expected
    assert seen[len(expected)] == "API documentation"
    with page.expect_file_chooser() as chooser:
        page.focus("#file")
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": encode(picture())})
    expect(page.locator("#bars li .name").first).to_have_text("red")


def hand_over(page: Page, way: str, *, target: str = "body", **items: str) -> None:
    """Drops or pastes items: `file` makes a text file, `link` and `text` are data from another page."""
    page.evaluate(
        """([way, target, items]) => {
            const data = new DataTransfer();
            for (const [kind, text] of Object.entries(items)) {
                if (kind === "file") {
                    data.items.add(new File([text], "note.txt", { type: "text/plain" }));
                } else {
                    data.setData(kind === "link" ? "text/uri-list" : "text/plain", text);
                }
            }
            const event = way === "drop"
                ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
            document.querySelector(target).dispatchEvent(event);
        }""",
        [way, target, items],
    )


@pytest.mark.parametrize(
    ("way", "items"),
    [
        ("choose", {"file": "a note"}),
        ("drop", {"file": "a note"}),
        ("drop", {"link": "https://example.org/picture.jpg"}),
        ("drop", {"text": "a note"}),
        ("paste", {"text": "a note"}),
    ],
)
def test_files_and_text_that_are_not_pictures_are_refused(open_page, seeing, way, items):
    page = open_page(seeing)
    choose(page, encode(picture()))
    expect(page.locator("#bars li")).to_have_count(5)
    if way == "choose":
        choose(page, items["file"].encode(), "note.txt", "text/plain")
    else:
        hand_over(page, way, **items)
    expect(page.locator("#message.wrong")).to_have_text(re.compile("not a picture file: use JPEG, PNG, WebP"))
    expect(page.locator("#bars li")).to_have_count(0)
    expect(page.locator("#picture")).to_be_hidden()
    choose(page, encode(picture()))
    expect(page.locator("#bars li")).to_have_count(5)
    expect(page.locator("#picture")).to_be_visible()
    expect(page.locator("#message")).to_have_text("")


def hold_answers(page: Page) -> None:
    """Holds requests back until a script calls `answer()`; they cannot be aborted, like those already answered."""
    page.evaluate(
        """() => {
            const ask = window.fetch;
            const released = new Promise(done => { window.answer = done; });
            window.fetch = async (path, options) => { await released; return ask(path, { ...options, signal: null }); };
        }"""
    )


def test_the_earlier_result_disappears_while_the_next_picture_is_classified(open_page, seeing):
    page = open_page(seeing)
    choose(page, encode(picture()))
    expect(page.locator("#heatmap")).to_be_visible()
    hold_answers(page)
    choose(page, encode(picture("blue")))
    expect(page.locator("#message")).to_have_text("Classifying …")
    expect(page.locator("#bars li")).to_have_count(0)
    expect(page.locator("#heatmap")).to_be_hidden()
    expect(page.locator("#latency")).to_have_text("")
    page.evaluate("answer()")
    expect(page.locator("#bars li .name").first).to_have_text("blue")
    expect(page.locator("#heatmap")).to_be_visible()


def test_a_late_result_does_not_replace_the_error_of_a_later_file(open_page, seeing):
    page = open_page(seeing)
    hold_answers(page)
    choose(page, encode(picture()))
    expect(page.locator("body")).to_have_class("busy")
    choose(page, b"a note", "note.txt", "text/plain")
    expect(page.locator("body")).not_to_have_class("busy")
    with page.expect_response("**/predict*") as response:
        page.evaluate("answer()")
    response.value.finished()
    page.wait_for_timeout(100)
    expect(page.locator("#message.wrong")).to_contain_text("not a picture file")
    expect(page.locator("#bars li")).to_have_count(0)


@pytest.mark.parametrize("kind", ["image/png", "text/plain"])
def test_the_next_file_ends_the_upload_of_the_one_before(open_page, seeing, kind):
    page = open_page(seeing)
    expect(page.locator("#model")).to_contain_text("5 classes")
    page.route("**/predict*", lambda route: None, times=1)  # The first never ends.
    with page.expect_request("**/predict*"):
        choose(page, encode(picture()))
    with page.expect_event("requestfailed") as failed:
        choose(page, encode(picture("blue")), kind=kind)
    assert "/predict" in failed.value.url
    if kind == "text/plain":
        expect(page.locator("#message.wrong")).to_contain_text("not a picture file")
        return
    expect(page.locator("#bars li .name").first).to_have_text("blue")
    expect(page.locator("#message")).to_have_text("")


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (502, "<html>Bad gateway</html>", "The server responded with status 502"),
        (502, '{"message": "Bad gateway"}', "The server responded with status 502"),
        (502, '{"error": "It is being replaced."}', "It is being replaced."),
        (413, "<html>Content too large</html>", "too large for a proxy in front of the server: scale it down."),
        (200, "<html>Welcome</html>", "The server responded with status 200"),
    ],
)
def test_an_error_of_a_proxy_is_shown(open_page, seeing, status, body, text):
    page = open_page(seeing)
    page.route("**/predict*", lambda route: route.fulfill(status=status, body=body))
    choose(page, encode(picture()))
    expect(page.locator("#message.wrong")).to_contain_text(text)
    page.route("**/model.json", lambda route: route.fulfill(status=status, body=body))
    page.reload()
    expect(page.locator("#message.wrong")).to_contain_text(text)


def test_a_picture_can_be_tried_again(open_page, seeing):
    page = open_page(seeing)
    page.route("**/predict*", lambda route: route.fulfill(status=502), times=1)
    choose(page, encode(picture()))
    expect(page.locator("#message.wrong")).to_contain_text("try again later")
    page.click("#again")
    expect(page.locator("#bars li .name").first).to_have_text("red")
    expect(page.locator("#again")).to_be_hidden()
    expect(page.locator("#file")).to_be_focused()


def test_the_page_names_the_model_that_classified_the_picture(open_page, seeing):
    page = open_page(seeing)
    expect(page.locator("#model")).to_contain_text("colours")
    changes = {"name": "another", "sha256": "0" * 64, "resize": {"mode": "pad", "filter": "bicubic", "side": None}}
    content = seeing.client.get("/model.json").json() | changes
    page.route("**/model.json", lambda route: route.fulfill(json=content))
    choose(page, encode(picture()))
    expect(page.locator("#model")).to_contain_text("another")
    expect(page.locator("#heatmap")).to_have_class("pad")


def test_a_model_that_the_page_could_not_ask_for_is_asked_for_with_the_next_picture(open_page, seeing):
    page = open_page(seeing)
    page.route("**/model.json", lambda route: route.fulfill(status=502))
    page.reload()
    expect(page.locator("#message.wrong")).to_contain_text("The server responded with status 502")
    page.unroute("**/model.json")
    choose(page, encode(picture()))
    expect(page.locator("#bars li")).to_have_count(5)
    expect(page.locator("#heatmap")).to_be_visible()
    expect(page.locator("#model")).to_contain_text("5 classes")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_phone_and_desk_light_and_dark(open_page, seeing, scheme, width):
    page = open_page(seeing, viewport={"width": width, "height": 740}, color_scheme=scheme, has_touch=width < 500)
    choose(page, encode(picture(size=(2000, 900))))
    expect(page.locator("#bars li")).to_have_count(5)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("#camera", "#heatmap-switch", "#drop"):
        assert page.locator(selector).bounding_box()["height"] >= 44
    assert (luminance(page, "body", "backgroundColor") > 0.5) == (scheme == "light")
    paper = luminance(page, "body", "backgroundColor")
    for selector in ("h1", "#model", "#latency", "#bars .name", "footer a"):
        assert contrast(luminance(page, selector, "color"), paper) >= 4.5, selector
    button = [luminance(page, "#camera", name) for name in ("color", "backgroundColor")]
    assert contrast(*button) >= 4.5


@pytest.mark.parametrize("viewport", [(740, 300), (320, 640), (1280, 740)])
def test_a_picture_keeps_its_proportions(open_page, seeing, viewport):
    page = open_page(seeing, viewport=dict(zip(("width", "height"), viewport, strict=True)))
    for size in ((900, 1200), (1080, 1920), (1600, 900), (12, 9), (9, 12), (20, 400)):
        choose(page, encode(picture(size=size)))
        expect(page.locator("#heatmap")).to_be_visible()
        box = page.locator("#picture").bounding_box()
        assert box["width"] / box["height"] == pytest.approx(size[0] / size[1], rel=0.02), size
        assert page.locator("#heatmap").bounding_box() == pytest.approx(box, abs=0.1)


def test_a_small_picture_is_enlarged(open_page, seeing):
    page = open_page(seeing)
    choose(page, encode(picture(size=(12, 9))))
    expect(page.locator("#heatmap")).to_be_visible()
    assert page.locator("#picture").bounding_box()["width"] == 128


@pytest.mark.parametrize("width", [320, 390])
def test_long_names_do_not_widen_a_page(open_page, serve, model_builder, tmp_path, width):
    path = model_builder(tmp_path / f"{'a_model_of_quite_a_long_name_' * 3}.onnx")
    with serve(JAXCNN_MODEL=str(path)) as server:
        page = open_page(server, viewport={"width": width, "height": 640})
        expect(page.locator("#model")).to_contain_text("5 classes")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.goto(f"http://127.0.0.1:{server.port}/docs")
        for is_open in ("false", "true"):
            page.evaluate(f"document.querySelectorAll('details').forEach(it => {{ it.open = {is_open}; }})")
            assert page.evaluate("document.documentElement.scrollWidth") <= width


def luminance(page: Page, selector: str, name: str) -> float:
    """Returns the relative luminance of a colour of an element, as WCAG defines it."""
    colour = page.locator(selector).first.evaluate(f"it => getComputedStyle(it).{name}")
    channels = [int(level) / 255 for level in re.findall(r"\d+", colour)[:3]]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


@pytest.fixture(scope="module")
def guarded(serve_module, model_path):
    with serve_module(JAXCNN_MODEL=str(model_path), JAXCNN_API_KEYS="the-right-key") as server:
        yield server


def enter_key(page: Page, key: str) -> None:
    page.fill("#key", key)
    page.keyboard.press("Enter")


def stored_key(page: Page) -> str | None:
    return page.evaluate("sessionStorage.getItem('key')")


def test_it_asks_for_a_key_where_one_is_needed(open_page, guarded):
    page = open_page(guarded)
    expect(page.locator("#key-form")).to_be_visible()
    expect(page.locator("#key-message")).to_have_text("")
    enter_key(page, " the-right-key ")
    expect(page.locator("#key-form")).to_be_hidden()
    expect(page.locator("#file")).to_be_focused()
    page.reload()
    expect(page.locator("#model")).to_contain_text("5 classes")
    expect(page.locator("#key-form")).to_be_hidden()
    choose(page, encode(picture()))
    expect(page.locator("#bars li .name").first).to_have_text("red")


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("the-wrong-key", "The server did not accept the API key."),
        ("the\N{EN DASH}right-key", "An API key cannot contain \N{LEFT DOUBLE QUOTATION MARK}\N{EN DASH}"),
        ("the-r\N{LATIN SMALL LETTER I WITH ACUTE}ght-key", "An API key cannot contain"),
        (" ", "The server requires an API key."),
    ],
)
def test_a_key_that_is_not_accepted_is_not_kept(open_page, guarded, key, text):
    page = open_page(guarded)
    enter_key(page, key)
    expect(page.locator("#key-message")).to_contain_text(text)
    expect(page.locator("#key-form")).to_be_visible()
    assert stored_key(page) is None
    page.reload()
    expect(page.locator("#key-form")).to_be_visible()
    choose(page, encode(picture()))
    expect(page.locator("#message.wrong")).to_have_text("The server requires an API key.")
    enter_key(page, "the-right-key")
    expect(page.locator("#key-form")).to_be_hidden()
    expect(page.locator("#message")).to_have_text("")
    assert stored_key(page) == "the-right-key"


def test_a_browser_without_storage_asks_for_the_key_on_each_visit(open_page, guarded):
    page = open_page(guarded)
    page.add_init_script("Object.defineProperty(window, 'sessionStorage', { get() { throw new Error('denied'); } })")
    page.reload()
    enter_key(page, "the-right-key")
    expect(page.locator("#key-form")).to_be_hidden()
    choose(page, encode(picture()))
    expect(page.locator("#bars li .name").first).to_have_text("red")
    page.reload()
    expect(page.locator("#key-form")).to_be_visible()


@pytest.mark.parametrize("key", ["a-former-key", "the\N{EN DASH}right-key"])
def test_a_kept_key_that_is_no_longer_accepted_is_asked_for_again(open_page, guarded, key):
    page = open_page(guarded)
    enter_key(page, "the-right-key")
    expect(page.locator("#key-form")).to_be_hidden()
    page.evaluate("key => sessionStorage.setItem('key', key)", key)
    choose(page, encode(picture()))
    expect(page.locator("#key-form")).to_be_visible()
    expect(page.locator("#message.wrong")).to_have_text(
        re.compile("did not accept the API key|An API key cannot contain")
    )
    assert stored_key(page) is None
    page.evaluate("key => sessionStorage.setItem('key', key)", key)
    page.reload()
    expect(page.locator("#key-form")).to_be_visible()
    expect(page.locator("#key-message")).to_have_text(
        re.compile("did not accept the API key|An API key cannot contain")
    )
    assert stored_key(page) is None


def test_a_key_can_be_pasted(open_page, guarded):
    page = open_page(guarded)
    hand_over(page, "paste", target="#key", text="the-right-key")
    expect(page.locator("#message")).to_be_hidden()


def test_a_key_for_a_server_that_is_gone(open_page, guarded):
    page = open_page(guarded)
    expect(page.locator("#key-form")).to_be_visible()
    page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('Failed to fetch')); }")
    enter_key(page, "the-right-key")
    expect(page.locator("#message.wrong")).to_contain_text("The server cannot be reached")
    expect(page.locator("#key-form")).to_be_visible()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def see_through() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


LOCAL = {
    "PNG": encode(picture()),
    "JPEG": encode(picture("blue"), "JPEG", quality=95),
    "turned JPEG": encode(picture("navy"), "JPEG", quality=95, exif=turned()),
    "smaller than the model": encode(picture("white", size=(5, 4))),
    "large": encode(picture("gray", size=(1601, 1203))),
    "transparent": encode(see_through()),
    "gray": encode(picture().convert("L")),
}


@in_browser
def test_the_model_in_the_browser_agrees_with_the_server(open_page, seeing):
    page = open_page(seeing)
    posts = []
    page.on("request", lambda request: posts.append(request.url) if request.method == "POST" else None)
    page.check("#local")
    for kind, data in LOCAL.items():
        choose(page, data)
        expect(page.locator("#latency")).to_have_text(re.compile(r"^\d+ ms in this browser$"), timeout=20_000)
        answer = post(seeing.client, data, params={"top_k": 5, "heatmap": "true"}).json()
        expected = {guess["class"]: guess["prob"] * 100 for guess in answer["top_predictions"]}
        assert shares(page) == pytest.approx(expected, abs=0.3), kind
        heat = [[round(190 * value) for value in row] for row in answer["heatmap"]]
        assert [pytest.approx(row, abs=3) for row in heat] == opacity(page), kind
    assert posts == []


def test_firefox_may_not_tick_run_in_this_browser_again(client):
    # Chromium, which the other tests run in, does not do so anyway.
    assert re.search('<input [^>]*id="local"[^>]* autocomplete="off"', client.get("/").text)


@in_browser
def test_a_picture_that_is_too_large_for_a_canvas_is_refused(open_page, seeing):
    page = open_page(seeing)
    page.evaluate(
        """() => {
            const canvas = CanvasRenderingContext2D.prototype;
            canvas.fillRect = canvas.drawImage = () => {};
        }"""
    )
    page.check("#local")
    choose(page, encode(picture()))
    expect(page.locator("#message.wrong")).to_contain_text("too large for this browser", timeout=20_000)


@in_browser
def test_the_resize_in_the_browser_is_pillows(open_page, seeing):
    page = open_page(seeing)
    for size, result in (((33, 20), (8, 8)), ((7, 5), (16, 12)), ((640, 3), (64, 64)), ((64, 64), (64, 64))):
        noise = Image.effect_noise(size, 90)
        image = Image.merge("RGB", [noise, noise.rotate(180), noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
        got = page.evaluate(
            """async ([rgba, width, height, toWidth, toHeight]) => {
                const { resize } = await import("/page/resize.js");
                const box = { left: 0, upper: 0, width, height };
                const image = { data: new Uint8ClampedArray(rgba), width, height };
                return [...resize(image, toWidth, toHeight, "bicubic", box)];
            }""",
            [[*image.convert("RGBA").tobytes()], *size, *result],
        )
        assert bytes(got) == image.resize(result, Image.Resampling.BICUBIC).tobytes()


@in_browser
def test_pictures_in_quick_succession_load_the_model_once(open_page, seeing):
    page = open_page(seeing)
    loads = []
    page.on("request", lambda request: loads.append(request.url) if "/model.onnx" in request.url else None)
    page.check("#local")
    for colour in ("red", "blue", "white"):
        choose(page, encode(picture(colour)))
    expect(page.locator("#latency")).to_have_text(re.compile("in this browser$"), timeout=20_000)
    assert next(iter(shares(page))) == "white"
    assert len(loads) == 1


@in_browser
def test_a_model_file_that_failed_to_load_is_fetched_again(open_page, seeing):
    page = open_page(seeing)
    page.check("#local")
    page.route("**/model.onnx*", lambda route: route.fulfill(status=502, body="<html>Bad gateway</html>"))
    choose(page, encode(picture()))
    expect(page.locator("#message.wrong")).to_contain_text("The server responded with status 502")
    page.unroute("**/model.onnx*")
    choose(page, encode(picture()))
    expect(page.locator("#bars li .name").first).to_have_text("red", timeout=20_000)


@in_browser
def test_a_runtime_that_does_not_load_is_reported_with_what_to_do(open_page, seeing):
    page = open_page(seeing)
    page.check("#local")
    page.route("**/ort.wasm.min.mjs", lambda route: route.fulfill(status=502))
    choose(page, encode(picture()))
    expect(page.locator("#message.wrong")).to_contain_text("reload the page, or untick “Run in this browser”")
    page.uncheck("#local")
    choose(page, encode(picture()))
    expect(page.locator("#bars li .name").first).to_have_text("red")
    page.unroute("**/ort.wasm.min.mjs")
    page.reload()
    page.check("#local")
    choose(page, encode(picture()))
    expect(page.locator("#latency")).to_have_text(re.compile("in this browser$"), timeout=20_000)


# The model is replaced while the page is open


@pytest.fixture
def replacing(open_page, serve, model_builder, tmp_path):
    """Yields a page, and a function that replaces the model with one of other names and without a heat map."""
    path = model_builder(tmp_path / "served.onnx", heatmap=True)
    settings = {"JAXCNN_ONNXRUNTIME_WEB": WEB} if WEB else {}
    with serve(JAXCNN_MODEL=str(path), JAXCNN_RELOAD_SECONDS="1", **settings) as server:

        def replace() -> None:
            names = ["rosso", "verde", "blu", "bianco", "nero"]
            model_builder(tmp_path / "other.onnx", metadata={"names": names}).replace(path)
            while server.client.get("/model.json").json()["names"] != names:
                time.sleep(0.05)

        page = open_page(server)
        expect(page.locator("#model")).to_contain_text("5 classes")
        yield page, replace


def test_an_open_page_goes_on_with_another_model(replacing):
    page, replace = replacing
    replace()
    choose(page, encode(picture()))
    expect(page.locator("#bars li .name").first).to_have_text("rosso")
    expect(page.locator("#heatmap-switch")).to_be_hidden()
    choose(page, b"no picture")
    expect(page.locator("#message.wrong")).to_contain_text("This is not a picture in a supported format")


@in_browser
def test_a_new_model_is_not_run_with_the_old_names(replacing):
    page, replace = replacing
    replace()
    page.check("#local")
    choose(page, encode(picture()))
    expect(page.locator("#message.wrong")).to_have_text("The model file has been replaced: reload the page.")
    page.reload()
    page.check("#local")
    choose(page, encode(picture()))
    expect(page.locator("#bars li .name").first).to_have_text("rosso", timeout=20_000)


@in_browser
def test_the_model_in_this_browser_is_replaced_with_the_one_on_the_server(replacing):
    page, replace = replacing
    page.check("#local")
    choose(page, encode(picture()))
    expect(page.locator("#bars li .name").first).to_have_text("red", timeout=20_000)
    replace()
    page.uncheck("#local")
    choose(page, encode(picture()))
    expect(page.locator("#bars li .name").first).to_have_text("rosso")
    page.check("#local")
    choose(page, encode(picture("blue")))
    expect(page.locator("#bars li .name").first).to_have_text("blu", timeout=20_000)
    expect(page.locator("#latency")).to_have_text(re.compile("in this browser$"))


# Its files


def test_its_files_are_guarded(client):
    assert "frame-ancestors 'none'" in client.get("/").headers["content-security-policy"]
    for path in ("/page/..%2fapp.py", "/page/app.py", "/page/", "/onnxruntime-web/package.json"):
        assert client.get(path).status_code == 404
    assert client.get("/page/page.js").headers["content-type"] == "text/javascript; charset=utf-8"


def test_the_model_file_is_the_one_served(client, model_path):
    assert client.get("/model.onnx").content == Path(model_path).read_bytes()
    digest = hashlib.sha256(Path(model_path).read_bytes()).hexdigest()
    assert client.get(f"/model.onnx?{digest}").headers["cache-control"].endswith("immutable")
    assert client.get("/model.onnx").headers["cache-control"] == "no-cache"
    assert client.get("/model.json").json()["names"] == ["red", "green", "blue", "white", "black"]


@pytest.mark.parametrize("query", ["another", "0" * 64, "v=1"])
def test_a_request_for_another_model_file_is_refused(client, query):
    response = client.get(f"/model.onnx?{query}")
    assert response.status_code == 404
    assert error(response) == "The model file has been replaced: reload the page."


@pytest.mark.parametrize("name", ["colours", "colours.ONNX", "colours.model"])
def test_a_model_file_of_any_name_is_sent(serve, model_path, tmp_path, name):
    path = shutil.copy(model_path, tmp_path / name)
    with serve(JAXCNN_MODEL=str(path)) as server:
        response = server.client.get("/model.onnx")
    assert response.content == Path(model_path).read_bytes()
    assert response.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("value", ["bytes=0-3", "bytes=9999999-", "bytes=5-2", "lines=1-2", "nonsense"])
@pytest.mark.parametrize("path", ["/", "/page/page.js", "/model.onnx"])
def test_a_range_request_gets_the_whole_file(client, path, value):
    response = client.get(path, headers={"Range": value})
    assert response.status_code == 200
    assert response.headers["accept-ranges"] == "none"
    assert response.content == client.get(path).content
