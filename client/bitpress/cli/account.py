"""Commands on who asks whom: login, whoami, config."""

import sys
from typing import Annotated

import typer

from bitpress.cli.app import MACHINE, Json, app
from bitpress.cli.output import plain_table, print_json, print_table, say
from bitpress.client import Client
from bitpress.config import Profile, configuration_path, find_service, read_configuration, write_profile
from bitpress.keys import Caller


@app.command(rich_help_panel=MACHINE)
def login(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the service.")],
    name: Annotated[str, typer.Option(metavar="PROFILE", help="What you call the service.")] = "default",
    as_json: Json = False,
) -> None:
    """Keep a service and its key as a profile; the key is asked for, or read from stdin, never an argument."""
    asked = typer.prompt("API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not (key := asked.strip()):
        raise typer.BadParameter("expected an API key on stdin")
    profile = Profile(url=url.rstrip("/"), key=key)
    with Client(profile.url, key) as client:
        caller = client.whoami()
    path = write_profile(name, profile)
    if as_json:
        print_json({"profile": name, "file": str(path), "key": caller.id, "tenant": caller.tenant})
    else:
        say(f"{path}: profile {name}, {caller.id} of tenant {caller.tenant}; it is used from now on")


@app.command(rich_help_panel=MACHINE)
def whoami(as_json: Json = False) -> None:
    """Show the key that is used: its tenant, what it may do, until when."""
    with Client() as client:
        caller = client.whoami()
        url = client.url
    if as_json:
        print_json({"url": url} | caller.model_dump(mode="json"))
        return
    table = plain_table("", "")
    for row, value in _rows(url, caller).items():
        table.add_row(row, value)
    print_table(table)


def _rows(url: str, caller: Caller) -> dict[str, str]:
    return {
        "service": f"{url}, version {caller.version}",
        "key": f"{caller.id} {caller.name}".strip(),
        "tenant": caller.tenant,
        "may": " ".join(caller.scopes),
        "expires": caller.expires_at.isoformat() if caller.expires_at else "never",
    }


@app.command(rich_help_panel=MACHINE)
def config(as_json: Json = False) -> None:
    """Show the configuration file, its profiles, and which service is asked; keys are not shown."""
    profiles, service = read_configuration().profiles, find_service()
    if as_json:
        print_json(
            {
                "file": str(configuration_path()),
                "profiles": {name: profile.url for name, profile in profiles.items()},
                "service": {"url": service.url, "named_by": service.named_by, "has_key": service.key is not None},
            }
        )
        return
    table = plain_table("", "")
    table.add_row("file", str(configuration_path()))
    for name, profile in profiles.items():
        table.add_row(f"profile {name}", profile.url)
    table.add_row("asked is", f"{service.url} ({service.named_by}, {'with' if service.key else 'without'} a key)")
    print_table(table)
