"""What the compose file promises of every service: who is published, with which rights, from which image."""

import re
from typing import Any

import pytest
import yaml
from documents import REPOSITORY

COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights_to_speak_of_and_a_pinned_image(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service and "pid" not in service
    assert re.search(r":\$\{\w+:-(?!latest)[\w.-]+\}$", service["image"]), service["image"]


def test_the_api_and_grafana_are_published_on_loopback_and_nothing_else_is() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published.keys() == {"api", "grafana"}
    assert all(port.startswith("${BITPRESS_BIND:-127.0.0.1}:") for ports in published.values() for port in ports)
    assert all("network_mode" not in service for service in SERVICES.values())
    assert COMPOSE["networks"]["inside"] == {"internal": True}


def test_secrets_are_files_and_nothing_has_a_default_password() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            secret = re.search("KEY|SECRET|TOKEN|PASSWORD|REDIS_URL", variable)
            assert not secret or str(value).startswith("/run/secrets/") or variable == "RAY_AUTH_MODE", (name, variable)
    asked = {secret for service in SERVICES.values() for secret in service.get("secrets", ())}
    made = set(re.findall(r"^\s*make (\w+)", (REPOSITORY / "deploy/make-secrets.sh").read_text("utf-8"), re.MULTILINE))
    assert asked == made == COMPOSE["secrets"].keys()


def test_every_ray_process_has_the_token() -> None:
    with_ray = {name: of for name, of in SERVICES.items() if "RAY_ADDRESS" in of.get("environment", {})}
    assert with_ray.keys() == {"dispatcher", "ray-head", "ray-worker"}
    for service in with_ray.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token" and "ray_token" in service["secrets"]


def test_variables_of_the_example_are_those_that_are_read() -> None:
    files = [REPOSITORY / "docker-compose.yml", *(REPOSITORY / "deploy").glob("compose.*.yml")]
    read = {name for file in files for name in re.findall(r"\$\{(\w+)[:?-]", file.read_text("utf-8"))}
    example = (REPOSITORY / "deploy/env.example").read_text("utf-8")
    assert set(re.findall(r"^(\w+)=", example, re.MULTILINE)) <= read
