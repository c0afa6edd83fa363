"""Where the service runs, by environment variables."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from bitpress.errors import Unavailable
from bitpress_service.settings import Settings


def test_everything_lies_in_one_directory_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITPRESS_STATE_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    settings = Settings()
    assert settings.state_dir == tmp_path / "bitpress"
    assert settings.artifacts_url == (tmp_path / "bitpress" / "artifacts").as_uri()
    assert settings.redis_dir.parent == settings.key_file.parent == settings.state_dir
    assert settings.host == "127.0.0.1" and settings.redis_url is None
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().state_dir == tmp_path / ".local" / "state" / "bitpress"


def test_a_variable_sets_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITPRESS_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("BITPRESS_STORAGE_URL", "s3://bucket/prefix")
    monkeypatch.setenv("BITPRESS_REDIS_URL", "redis://db:6379/0")
    monkeypatch.setenv("BITPRESS_PORT", "9000")
    settings = Settings()
    assert (settings.state_dir, settings.port) == (tmp_path, 9000)
    assert (settings.artifacts_url, settings.redis_url) == ("s3://bucket/prefix", "redis://db:6379/0")
    monkeypatch.setenv("BITPRESS_PORT", "99999")
    with pytest.raises(ValidationError, match="port"):
        Settings()


def test_a_new_state_directory_is_its_users_alone_and_an_old_one_stays_as_it_is(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "below" / "state")
    settings.make_state_dir()
    assert settings.state_dir.stat().st_mode & 0o077 == 0
    settings.state_dir.chmod(0o750)
    settings.make_state_dir()
    assert settings.state_dir.stat().st_mode & 0o777 == 0o750
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="file"):
        Settings(state_dir=tmp_path / "file").make_state_dir()
