"""Commands on API keys, for who operates the service."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from bitpress.cli.app import MACHINE, Json, app
from bitpress.cli.output import plain_table, print_json, print_table, say
from bitpress.client import Client
from bitpress.jobs import validated
from bitpress.keys import SCOPES, USER_SCOPES, KeyRequest

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys; takes a key with the scope admin.")
app.add_typer(keys, name="keys", rich_help_panel=MACHINE)


@keys.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose jobs it reaches: a-z, 0-9, - and _.")],
    name: Annotated[str, typer.Option(help="What you call the key.")] = "",
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help=f"What it may do, of: {', '.join(SCOPES)}.")
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="It expires after so many days.")] = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it; it cannot be shown again."""
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    given = {"tenant": tenant, "name": name, "scopes": scopes or USER_SCOPES, "expires_at": expires_at}
    with Client() as client:
        issued = client.create_key(validated(KeyRequest, given, "the key"))
    if as_json:
        print_json(issued.model_dump(mode="json"))
        return
    typer.echo(issued.key)
    say(f"{issued.id} of tenant {issued.tenant}: {', '.join(issued.scopes)}. Keep it: it cannot be shown again.")


@keys.command(name="list")
def list_keys(as_json: Json = False) -> None:
    """List the keys that are valid; the keys themselves are stored nowhere."""
    with Client() as client:
        records = client.keys()
    if as_json:
        print_json([record.model_dump(mode="json") for record in records])
        return
    table = plain_table("key", "tenant", "name", "scopes", "created", "last used", "expires")
    for record in records:
        times = (record.created_at, record.last_used_at, record.expires_at)
        shown = (time.astimezone().strftime("%Y-%m-%d %H:%M") if time else "-" for time in times)
        table.add_row(record.id, record.tenant, record.name, " ".join(record.scopes), *shown)
    print_table(table)


@keys.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of a key.")], as_json: Json = False) -> None:
    """Revoke a key: from here on it is not known."""
    with Client() as client:
        client.revoke_key(key_id)
    if as_json:
        print_json({"revoked": key_id})
    else:
        say(f"revoked {key_id}")
