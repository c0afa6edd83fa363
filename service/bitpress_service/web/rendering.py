"""Templates, and how values are written in them: escaped, with units, times for a reader in any zone."""

import hashlib
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from bitpress.jobs import Job
from bitpress.methods import MethodConfig, PTQ161Config
from bitpress.progress import duration
from bitpress_service.keys import Key
from bitpress_service.sessions import csrf_token

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
SESSION_COOKIE = "bitpress_session"
THEME_COOKIE = "bitpress_theme"
THEMES = ("auto", "light", "dark")
METHOD_NAMES = {"rtn": "RTN", "gptq": "GPTQ", "spqr": "SpQR", "septq": "SEPTQ", "ptq161": "PTQ1.61"}


def render(request: Request, template: str, status_code: int = 200, **context: Any) -> HTMLResponse:
    """Answer with a template; every one knows the caller (None before login), the form token and the theme."""
    caller: Key | None = getattr(request.state, "key", None)
    theme = request.cookies.get(THEME_COOKIE)
    page = _environment().get_template(template)
    common = {
        "caller": caller,
        "csrf": csrf_token(request.cookies[SESSION_COOKIE]) if caller else "",
        "theme": theme if theme in THEMES else "auto",
        "path": request.url.path,
    }
    return HTMLResponse(page.render(common | context), status_code)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # with the first page; the API starts without it

    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": size,
        "count": count,
        "duration": duration,
        "method": method_label,
        "method_name": lambda kind: METHOD_NAMES.get(kind, kind),
        "model": model_name,
        "number": number,
        "percent": percent,
        "seconds": seconds,
        "time": time_element,
    }
    environment.globals |= {"asset": asset, "elapsed": elapsed, "now": lambda: datetime.now(UTC)}
    return environment


@cache
def asset(name: str) -> str:
    """Address of a file below static/, which changes with its content."""
    digest = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]
    return f"/ui/static/{name}?v={digest}"


def model_name(uri: str) -> str:
    """The last part of a directory; a hub id whole."""
    is_path = uri.startswith(("/", ".", "~")) or uri.count("/") > 1
    return uri.rstrip("/").rpartition("/")[2] or uri if is_path else uri


def method_label(config: MethodConfig) -> str:
    """A method's name and what tells its jobs apart: widths and groups."""
    name = METHOD_NAMES.get(config.kind, config.kind)
    if isinstance(config, PTQ161Config):
        return f"{name}, {config.salient_percent:g} % salient"
    group_size = getattr(config, "group_size", None)
    return f"{name}, {config.bits} bits" + (f", groups of {group_size}" if group_size else "")


def elapsed(job: Job) -> float | None:
    """Seconds from start to end, or to now; None before the start."""
    if job.started_at is None:
        return None
    return ((job.finished_at or datetime.now(UTC)) - job.started_at).total_seconds()


def time_element(moment: datetime) -> Markup:
    """A moment in UTC, which a script turns into the reader's zone; the UTC stays as its title."""
    utc = moment.astimezone(UTC)
    text = f"{utc:%Y-%m-%d %H:%M:%S} UTC"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(utc.isoformat(timespec="seconds"), text, text)


def size(num_bytes: float) -> str:
    """Bytes with a binary unit, three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.3g} TiB"


def count(value: int) -> str:
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def number(value: float, digits: int = 3) -> str:
    """Significant digits, without an exponent between 0.0001 and a million."""
    return f"{value:.{digits}g}" if not 1e3 <= abs(value) < 1e6 else f"{value:.0f}"


def seconds(value: float) -> str:
    """Seconds to two digits below ten of them, from a minute on as a clock shows them."""
    return duration(value) if value >= 60 else f"{value:.2g} s" if value < 10 else f"{value:.0f} s"


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"
