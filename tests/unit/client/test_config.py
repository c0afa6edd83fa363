"""Which service is asked, with which key: arguments, environment, profiles, this machine's own."""

import json
import stat
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from http_answers import Respond, send
from run_cli import bitpress

from bitpress.config import (
    DEFAULT_URL,
    Profile,
    configuration_path,
    find_service,
    read_configuration,
    state_directory,
    write_profile,
)
from bitpress.errors import ConfigError

Start = Callable[[Respond], str]

TEAM = """profile = "team"
[profiles.team]
url = "https://team.example/"
key = "of the team"
[profiles.lab]
url = "https://lab.example"
key_file = "lab.key"
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of an embedded service."""
    (tmp_path / "url").write_text("http://127.0.0.1:4321\n")
    (tmp_path / "api-key").write_text("embedded-key\n")
    monkeypatch.setenv("BITPRESS_STATE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration file with two profiles."""
    path = tmp_path / "config.toml"
    path.write_text(TEAM)
    path.chmod(0o600)
    (tmp_path / "lab.key").write_text("of the lab\n")
    (tmp_path / "lab.key").chmod(0o600)
    monkeypatch.setenv("BITPRESS_CONFIG", str(path))
    return path


def test_nothing_set_means_the_default_address() -> None:
    assert find_service() == (DEFAULT_URL, None, "the service of this machine")


def test_the_embedded_service_is_found_by_its_files(state: Path) -> None:
    assert find_service()[:2] == ("http://127.0.0.1:4321", "embedded-key")


def test_arguments_go_before_the_environment_that_before_the_profile_that_before_this_machine(
    state: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_service() == ("https://team.example", "of the team", "profile team")
    monkeypatch.setenv("BITPRESS_API_URL", "https://press.example/")
    monkeypatch.setenv("BITPRESS_API_KEY", "mine")
    assert find_service() == ("https://press.example", "mine", "BITPRESS_API_URL")
    assert find_service("http://10.0.0.1:1", "other") == ("http://10.0.0.1:1", "other", "the caller")
    file.unlink()
    monkeypatch.delenv("BITPRESS_API_URL")
    assert find_service()[:2] == ("http://127.0.0.1:4321", "mine")


def test_a_profile_is_named_by_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_PROFILE", "lab")
    assert find_service() == ("https://lab.example", "of the lab", "profile lab")
    monkeypatch.setenv("BITPRESS_PROFILE", "home")
    with pytest.raises(ConfigError, match="no profile 'home'; there is team, lab"):
        find_service()


def test_a_key_is_for_the_service_that_it_was_given_for(
    state: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITPRESS_API_URL", "https://press.example")
    assert find_service()[:2] == ("https://press.example", None)
    assert find_service("http://127.0.0.1:4321/")[:2] == ("http://127.0.0.1:4321", "embedded-key")
    assert find_service("https://team.example")[:2] == ("https://team.example", "of the team")


def test_a_file_with_a_key_that_others_may_read_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.chmod(0o640)
    with pytest.raises(ConfigError, match=r"config\.toml holds a key and may be read by others: chmod 600"):
        find_service()
    file.chmod(0o600)
    (file.parent / "lab.key").chmod(0o604)
    monkeypatch.setenv("BITPRESS_PROFILE", "lab")
    with pytest.raises(ConfigError, match=r"lab\.key holds a key and may be read by others"):
        find_service()
    (file.parent / "lab.key").unlink()
    with pytest.raises(ConfigError, match=r"the key file .*lab\.key is not there"):
        find_service()


def test_a_file_without_keys_may_be_read_by_all(file: Path) -> None:
    file.write_text('[profiles.open]\nurl = "https://open.example"\n')
    file.chmod(0o644)
    assert read_configuration().profiles["open"].key is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("profile = ", "is not valid: Invalid value"),
        ('[profiles.x]\nurl = "a"\nkey = 7', "profiles.x.key"),
        ('[profiles.x]\nurl = "a"\ntoken = "secret"', "profiles.x.token"),
        ('colour = "red"', "colour"),
    ],
)
def test_a_file_that_is_not_valid_is_refused_without_showing_what_it_holds(
    file: Path, text: str, complaint: str
) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        find_service()
    assert "secret" not in caught.value.message and "correct it, or remove it" in caught.value.message


def test_a_profile_is_written_beside_the_others_for_its_user_alone(file: Path) -> None:
    file.chmod(0o600)
    path = write_profile('a "new" one', Profile(url="https://new.example", key="\N{SNOWMAN}"))
    assert path == configuration_path() == file and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert find_service() == ("https://new.example", "\N{SNOWMAN}", 'profile a "new" one')
    assert list(read_configuration().profiles) == ["team", "lab", 'a "new" one']


def test_files_follow_the_desktop_convention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BITPRESS_STATE_DIR", "BITPRESS_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_directory() == tmp_path / ".local" / "state" / "bitpress"
    assert configuration_path() == tmp_path / ".config" / "bitpress" / "config.toml"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "etc"))
    assert state_directory() == tmp_path / "xdg" / "bitpress"
    assert configuration_path() == tmp_path / "etc" / "bitpress" / "config.toml"


def test_a_profile_on_the_command_line_goes_before_the_environment(file: Path) -> None:
    environment = {"BITPRESS_API_URL": "https://press.example", "BITPRESS_API_KEY": "mine"}

    def asked(*options: str) -> object:
        return json.loads(bitpress(*options, "config", "--json", **environment).stdout)["service"]

    assert asked() == {"url": "https://press.example", "named_by": "BITPRESS_API_URL", "has_key": True}
    assert asked("--profile", "lab") == {"url": "https://lab.example", "named_by": "profile lab", "has_key": True}
    assert asked("--url", "http://127.0.0.1:9") == {
        "url": "http://127.0.0.1:9", "named_by": "BITPRESS_API_URL", "has_key": True,
    }  # fmt: skip
    refused = bitpress("--profile", "home", "list", **environment)
    assert refused.returncode == 2 and refused.stderr.startswith("error [bad-config]: ")


def test_login_asks_the_service_before_it_keeps_a_key(serve: Start, file: Path) -> None:
    def api(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers["Authorization"] != "Bearer good":
            return send(handler, 401, {"code": "unauthorized", "detail": "this API key is not known"})
        return send(handler, 200, {
            "object": "key", "id": "key_1", "tenant": "acme", "name": "", "scopes": ["jobs:read"],
            "created_at": "2026-11-23T00:00:00Z", "expires_at": None, "last_used_at": None, "version": "9.9",
        })  # fmt: skip

    url = serve(api)
    refused = bitpress("login", url, stdin="bad\n")
    assert refused.returncode == 4 and list(read_configuration().profiles) == ["team", "lab"]
    assert bitpress("login", url, stdin="\n").returncode == 2
    done = bitpress("login", url + "/", "--name", "new", stdin="good\n")
    assert done.returncode == 0 and "good" not in done.stdout + done.stderr
    assert find_service()[:2] == (url, "good")
    shown = bitpress("whoami")
    assert "key_1" in shown.stdout and "jobs:read" in shown.stdout and "9.9" in shown.stdout
