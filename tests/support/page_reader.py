"""Somebody before a browser: opens pages, takes pictures, and notes everything that a page should not have done."""

from functools import cache
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Request

AXE = Path(__file__).parents[1] / "browser" / "vendor" / "axe.min.js"
DESKTOP, PHONE = (1280, 900), (360, 780)


class Reader:
    """A browser window of its own. `faults`: errors of scripts, breaches of the content policy, foreign requests."""

    def __init__(self, browser: Browser, url: str, pictures: Path, **context: Any) -> None:
        self.url = url
        self.faults: list[str] = []
        self._browser = browser
        self._pictures = pictures
        self._context = browser.new_context(**context)
        self._context.on("request", self._check_request)
        self.page = self._context.new_page()
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on("console", lambda line: self.faults.append(line.text) if _is_fault(line.type, line.text) else None)

    def without_scripts(self) -> "Reader":
        """The same person with JavaScript turned off."""
        state = self._context.storage_state()
        return Reader(self._browser, self.url, self._pictures, java_script_enabled=False, storage_state=state)

    def log_in(self, key: str) -> None:
        self.open("/login")
        self.page.get_by_label("API key").fill(key)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url("**/ui/jobs")

    def open(self, path: str) -> Page:
        self.page.goto(f"{self.url}/ui{path}")
        return self.page

    def look_like(self, size: tuple[int, int], scheme: str) -> None:
        self.page.set_viewport_size({"width": size[0], "height": size[1]})
        self.page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")

    def picture(self, name: str) -> None:
        self._pictures.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=self._pictures / f"{name}.png", full_page=True)

    def barriers(self) -> list[str]:
        """What keeps people from using the open page: axe's serious and critical findings."""
        self.page.evaluate(_axe())
        found = self.page.evaluate("() => axe.run({resultTypes: ['violations']})")
        return [
            f"{each['id']}: {node['html']} {node['failureSummary']}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return int(self.page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth"))

    def close(self) -> None:
        self._context.close()

    def _check_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/ui", "blob:")):
            self.faults.append(f"asked for {request.url}")


def _is_fault(kind: str, text: str) -> bool:
    # A page may be left while it is asking for a part of itself.
    return kind in ("error", "warning") and "net::ERR_ABORTED" not in text


@cache
def _axe() -> str:
    return AXE.read_text("utf-8")
