"""/docs and the OpenAPI document: every example works when it is pressed, in a browser too."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_reader import BROWSER
from service_networks import build_digits
from service_runs import PATIENCE, ROOT, Running, running, until
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.settings import Settings

KEY, ADMIN = "infer-key-0123456789", "admin-key-0123456789"


@pytest.fixture(scope="module")
def alone() -> Iterator[Running]:
    """The one model of the checkout."""
    with running(Settings(repository=ROOT / "models", device="cpu", port=0, threads=1)) as started:
        yield started


def press(client: httpx.Client, document: dict[str, Any], path: str, method: str) -> httpx.Response:
    """Send what the page sends when nothing is changed."""
    operation = document["paths"][path][method]
    url = path
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            url = url.replace(f"{{{parameter['name']}}}", parameter["example"])
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    return client.request(method, url, **({} if body is None else {"json": body["example"]}))


def operations(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(path, method) for path, methods in document["paths"].items() for method in methods]


@pytest.mark.parametrize("name", ["alone", "server"])
def test_every_example_works(name: str, request: pytest.FixtureRequest):
    server: Running = request.getfixturevalue(name)
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        document = client.get("/openapi.json").json()
        assert ("/predict" in document["paths"]) == (name == "alone")
        for path, method in operations(document):
            answer = press(client, document, path, method)
            wanted = 501 if path.endswith(("/load", "/unload")) else 200  # no admin key is set here
            assert answer.status_code == wanted, (path, answer.text)
            assert str(wanted) in document["paths"][path][method]["responses"], path
        body = document["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"]["application/json"]
        assert any(body["example"]["inputs"][0]["data"])  # a golden vector, no zeros


def test_the_examples_follow_what_is_served_and_keys_are_declared(tmp_path: Path):
    for name in ("first", "second"):
        build_digits(tmp_path / "models", tmp_path / "sources", name)
    files = {}
    for name, key in (("infer", KEY), ("admin", ADMIN)):
        files[name] = tmp_path / name
        files[name].write_text(key)
        files[name].chmod(0o600)
    settings = Settings(
        repository=tmp_path / "models", device="cpu", port=0, threads=1, api_key_file=files["infer"],
        admin_key_file=files["admin"],
    )  # fmt: skip
    headers = {"X-API-Key": ADMIN}
    with running(settings) as server, httpx.Client(base_url=server.url, headers=headers, timeout=PATIENCE) as client:
        before = client.get("/openapi.json").json()
        schemes = before["components"]["securitySchemes"]
        assert {scheme["type"] for scheme in schemes.values()} == {"http", "apiKey"}
        for path, method in operations(before):
            operation = before["paths"][path][method]
            free = path in ("/v2/health/live", "/v2/health/ready")
            assert ("security" in operation) is not free, path
            with httpx.Client(base_url=server.url) as stranger:
                assert (press(stranger, before, path, method).status_code == 401) is not free, path
        assert press(client, before, "/v2/repository/models/{model}/load", "post").status_code == 200
        assert press(client, before, "/v2/repository/models/{model}/unload", "post").status_code == 200
        after = client.get("/openapi.json").json()
        assert "/predict" in after["paths"]
        assert press(client, after, "/v2/models/{model}/infer", "post").json()["model_name"] == "second"


PRESSER = """
<!doctype html><title>waiting</title><iframe id="docs" src="/docs" width="1200" height="3000"></iframe>
<script>
const frame = document.getElementById("docs");
const wait = async (find) => {
  for (let tries = 0; tries < 400; tries++) {
    const found = find();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error("nothing came for " + find);
};
const press = async (path, kind, file) => {
  const block = await wait(() => [...frame.contentDocument.querySelectorAll(".opblock-post")].find(
    (found) => found.querySelector("[data-path]")?.dataset.path === path));
  if (!block.classList.contains("is-open")) block.querySelector(".opblock-summary-control").click();
  if (kind) {
    const choice = await wait(() => block.querySelector(".opblock-section-request-body select"));
    const set = Object.getOwnPropertyDescriptor(frame.contentWindow.HTMLSelectElement.prototype, "value").set;
    set.call(choice, kind);
    choice.dispatchEvent(new frame.contentWindow.Event("change", { bubbles: true }));
  }
  (await wait(() => block.querySelector(".try-out__btn:not(.cancel)") || block.querySelector(".execute"))).click();
  if (file) {
    const input = await wait(() => block.querySelector("input[type=file]"));
    const bag = new DataTransfer();
    bag.items.add(new File([await (await fetch(file)).blob()], "digit.png", { type: "image/png" }));
    input.files = bag.files;
    input.dispatchEvent(new frame.contentWindow.Event("change", { bubbles: true }));
  }
  await new Promise((resolve) => setTimeout(resolve, 300));
  (await wait(() => block.querySelector(".execute"))).click();
  const row = await wait(() => block.querySelector(".live-responses-table .response .response-col_status"));
  const body = block.querySelector(".live-responses-table .highlight-code, .live-responses-table .microlight");
  return { path, status: row.innerText.trim().slice(0, 3), body: body ? body.innerText.slice(0, 400) : "" };
};
(async () => {
  const found = [];
  try {
    found.push(await press("/v2/models/{model}/infer"));
    found.push(await press("/models/{model}/predict"));
    found.push(await press("/predict", "image/png", "/digit.png"));
  } catch (problem) { found.push({ problem: String(problem) }); }
  await fetch("/done", { method: "POST", body: JSON.stringify(found) });
})();
</script>
"""


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_pressing_execute_in_a_browser_works(alone: Running, tmp_path: Path):
    done: list[list[dict[str, str]]] = []

    async def presser(_: Request) -> Response:
        return Response(PRESSER, media_type="text/html")

    async def picture(_: Request) -> Response:
        return Response((ROOT / "docs" / "digit-5.png").read_bytes(), media_type="image/png")

    async def finish(request: Request) -> Response:
        done.append(await request.json())
        return Response("{}")

    pages = [Route("/presser", presser), Route("/digit.png", picture), Route("/done", finish, methods=["POST"])]
    alone.app.router.routes[:0] = pages
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    browser = subprocess.Popen(
        [*command, "--remote-debugging-port=0", f"{alone.url}/presser"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: bool(done))
    finally:
        os.killpg(browser.pid, signal.SIGKILL)  # it has children
        browser.wait(PATIENCE)
        del alone.app.router.routes[: len(pages)]
    (found,) = done
    assert [each.get("status") for each in found] == ["200"] * 3, found
    assert '"logits"' in found[0]["body"]
    assert '"label"' in found[1]["body"]
    assert '"label": "5"' in found[2]["body"]
