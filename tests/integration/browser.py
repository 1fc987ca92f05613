"""A page in headless Chromium over its debugging protocol: what it logs, what it asks the network for, how it looks."""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
)  # fmt: skip
DEADLINE = 60  # seconds for each of: the start, the whole visit


def find_chromium() -> str | None:
    """The browser's program, if this machine has one."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


@dataclass
class Visit:
    """What happened while a page was open."""

    problems: list[str] = field(default_factory=list)  # console errors and warnings, exceptions, refused content
    requests: list[str] = field(default_factory=list)  # addresses asked for, data: ones excepted
    answers: dict[str, object] = field(default_factory=dict)  # of the expressions evaluated
    screenshot: bytes = b""  # of the whole page, PNG


@contextmanager
def chromium():
    """Address of a browser's debugging endpoint; the browser and its profile are gone afterwards."""
    profile = Path(tempfile.mkdtemp(prefix="nnce-chromium-"))
    process = subprocess.Popen(
        [find_chromium(), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{_port(profile / 'DevToolsActivePort', process)}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(profile, ignore_errors=True)


def _port(file: Path, process: subprocess.Popen) -> int:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end and process.poll() is None:
        lines = file.read_text().split() if file.exists() else []
        if lines:
            return int(lines[0])
        time.sleep(0.05)
    raise RuntimeError(f"chromium did not start within {DEADLINE} s (exit status {process.poll()})")


def visit(browser: str, url: str, width: int, expressions: dict[str, str], dark: bool = False) -> Visit:
    """Opens a page `width` CSS pixels wide, waits until it is loaded, and evaluates JavaScript expressions in it."""
    return asyncio.run(asyncio.wait_for(_visit(browser, url, width, expressions, dark), DEADLINE))


async def _visit(browser: str, url: str, width: int, expressions: dict[str, str], dark: bool) -> Visit:
    seen, loaded = Visit(), asyncio.Event()
    async with aiohttp.ClientSession() as session:
        async with session.put(f"{browser}/json/new?about:blank") as response:
            target = await response.json(content_type=None)
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            waiting: dict[int, asyncio.Future] = {}
            reader = asyncio.create_task(_read(socket, waiting, seen, loaded))

            async def call(method: str, **parameters) -> dict:
                number = len(waiting) + 1
                waiting[number] = asyncio.get_running_loop().create_future()
                await socket.send_json({"id": number, "method": method, "params": parameters})
                return await waiting[number]

            for domain in ("Page", "Runtime", "Log", "Network"):
                await call(f"{domain}.enable")
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            await call("Emulation.setEmulatedMedia", features=[scheme])
            await call(
                "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600
            )
            await call("Page.navigate", url=url)
            await loaded.wait()
            for name, expression in expressions.items():
                answer = await call("Runtime.evaluate", expression=expression, returnByValue=True)
                seen.answers[name] = answer["result"].get("value")
            size = (await call("Page.getLayoutMetrics"))["cssContentSize"]
            picture = await call("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
            seen.screenshot = base64.b64decode(picture["data"])
            reader.cancel()
    return seen


async def _read(socket, waiting: dict[int, asyncio.Future], seen: Visit, loaded: asyncio.Event) -> None:
    async for message in socket:
        event = json.loads(message.data)
        if "id" in event:
            waiting[event["id"]].set_result(event.get("result", {}))
            continue
        parameters = event["params"]
        match event["method"]:
            case "Page.loadEventFired":
                loaded.set()
            case "Network.requestWillBeSent" if not parameters["request"]["url"].startswith("data:"):
                seen.requests.append(parameters["request"]["url"])
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                seen.problems.append(str(parameters["args"]))
            case "Runtime.exceptionThrown":
                seen.problems.append(str(parameters["exceptionDetails"]))
            case "Log.entryAdded" if parameters["entry"]["level"] in ("error", "warning"):
                seen.problems.append(parameters["entry"]["text"])
