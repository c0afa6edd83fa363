"""Which service is asked, with which key: an argument, else the environment, else a profile, else this machine's own.

Profiles stand in `~/.config/bitpress/config.toml`:

    profile = "team"  # the one that is used when none is named

    [profiles.team]
    url = "https://press.example"
    key = "bp_..."  # or key_file = "team.key", beside this file

A key is offered to the service that it was given for and to no other: with another address and no key of its own,
requests go out without one.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from bitpress.errors import ConfigError

DEFAULT_URL = "http://127.0.0.1:8000"


class Service(NamedTuple):
    """`named_by`: who says that it is this one. `key` is null when none was found."""

    url: str
    key: str | None
    named_by: str


class Profile(BaseModel):
    """A service that has a name. `key_file` lies beside the configuration file unless its path is absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    key: str | None = None
    key_file: Path | None = None


class Configuration(BaseModel):
    """The configuration file. `profile` names the one that is used when none is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str | None = None
    profiles: dict[str, Profile] = {}


def find_service(url: str | None = None, key: str | None = None) -> Service:
    """The service's address, without a slash at its end, and its key, as arguments or as the places above name them.

    Raises ConfigError.
    """
    url_given, key_given = url or os.environ.get("BITPRESS_API_URL"), key or os.environ.get("BITPRESS_API_KEY")
    if url_given and key_given:
        return Service(_plain(url_given), key_given, "BITPRESS_API_URL" if url is None else "the caller")
    name, profile = chosen_profile()
    embedded = _plain(read_line(state_directory() / "url") or DEFAULT_URL)
    places = {
        "the caller": url,
        "BITPRESS_API_URL": os.environ.get("BITPRESS_API_URL"),
        f"profile {name}": profile and profile.url,
        "the service of this machine": embedded,
    }
    named_by, found = next((place, _plain(address)) for place, address in places.items() if address)
    if key_given:
        return Service(found, key_given, named_by)
    if profile and found == _plain(profile.url):
        return Service(found, _key_of(profile), named_by)
    if found in (embedded, DEFAULT_URL):
        return Service(found, read_line(state_directory() / "api-key"), named_by)
    return Service(found, None, named_by)


def chosen_profile() -> tuple[str, Profile | None]:
    """The profile that BITPRESS_PROFILE names, else the file itself, with its name. Raises ConfigError."""
    configuration = read_configuration()
    asked = os.environ.get("BITPRESS_PROFILE")
    name = asked or configuration.profile
    if name is None:
        return "", None
    if name not in configuration.profiles:
        there = ", ".join(configuration.profiles) or "none"
        raise ConfigError(f"{configuration_path()}: no profile {name!r}; there is {there}. `bitpress login` makes one")
    return name, configuration.profiles[name]


def configuration_path() -> Path:
    """BITPRESS_CONFIG, else config.toml where the desktop keeps configurations."""
    if chosen := os.environ.get("BITPRESS_CONFIG"):
        return Path(chosen)
    xdg = os.environ.get("XDG_CONFIG_HOME")
    return (Path(xdg) if xdg else Path.home() / ".config") / "bitpress" / "config.toml"


def read_configuration() -> Configuration:
    """Raises ConfigError for a file that is not valid, or that holds a key and may be read by others."""
    import tomllib  # only who has such a file waits for it

    path = configuration_path()
    try:
        configuration = Configuration.model_validate(tomllib.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return Configuration()
    except (ValidationError, ValueError) as error:
        raise ConfigError(f"{path} is not valid: {_complaint(error)}; correct it, or remove it") from None
    if any(profile.key for profile in configuration.profiles.values()):
        _require_private(path)
    return configuration


def write_profile(name: str, profile: Profile) -> Path:
    """Put a profile into the configuration file, readable by this user alone, and make it the one that is used.

    Returns the file. Comments in it are lost. Raises ConfigError as `read_configuration` does.
    """
    before, path = read_configuration(), configuration_path()
    lines = [f"profile = {_toml(name)}"]
    for title, each in (dict(before.profiles) | {name: profile}).items():
        members = each.model_dump(mode="json", exclude_none=True).items()
        lines += ["", f"[profiles.{_toml(title)}]", *(f"{member} = {_toml(value)}" for member, value in members)]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    draft.replace(path)
    return path


def state_directory() -> Path:
    """Where the embedded service keeps its files: BITPRESS_STATE_DIR, else the XDG state directory."""
    if chosen := os.environ.get("BITPRESS_STATE_DIR"):
        return Path(chosen)
    xdg = os.environ.get("XDG_STATE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".local" / "state") / "bitpress"


def read_line(path: Path) -> str | None:
    """What a file of one line says; None when it is not there or empty."""
    try:
        return path.read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None


def _key_of(profile: Profile) -> str | None:
    if profile.key is not None or profile.key_file is None:
        return profile.key
    path = configuration_path().parent / profile.key_file
    try:
        _require_private(path)
    except FileNotFoundError:
        raise ConfigError(f"{configuration_path()}: the key file {path} is not there") from None
    return read_line(path)


def _require_private(path: Path) -> None:
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} holds a key and may be read by others: chmod 600 {path}")


def _plain(url: str) -> str:
    return url.rstrip("/")


def _complaint(error: ValueError) -> str:
    """What is wrong, without the value that is: it may be a key."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def _toml(text: str) -> str:
    return json.dumps(text)  # a JSON string is a TOML one
