"""Commands on webhooks: `bitpress webhooks add|list|rotate|remove|test|deliveries`."""

from collections.abc import Sequence
from typing import Annotated, Any, get_args

import typer

from bitpress.cli.app import JOBS, Json, app
from bitpress.cli.output import plain_table, print_json, print_table, say
from bitpress.client import Client
from bitpress.webhooks import EventType, WebhookSecret

webhooks = typer.Typer(help="Have the service tell another system about jobs.", no_args_is_help=True)
app.add_typer(webhooks, name="webhooks", rich_help_panel=JOBS)

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Id of a webhook.")]


@webhooks.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where messages are posted to.")],
    event: Annotated[
        list[str] | None, typer.Option(help="What it is to be told; again for more. Default: how jobs end.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Register a receiver and print its id and its secret, which is not shown again."""
    if unknown := [one for one in event or () if one not in get_args(EventType)]:
        raise typer.BadParameter(f"no event {unknown[0]!r}; there are {', '.join(get_args(EventType))}")
    with Client() as client:
        _print_secret(client.webhooks.add(url, event), as_json)  # type: ignore[arg-type]  # checked above


@webhooks.command(name="list")
def list_webhooks(as_json: Json = False) -> None:
    """List the receivers."""
    with Client() as client:
        found = client.webhooks.list()
    rows = [(one.id, one.url, " ".join(one.events), one.disabled or "enabled") for one in found]
    _print_rows(("webhook", "url", "events", "state"), rows, found, as_json)


@webhooks.command()
def rotate(webhook_id: WebhookId, as_json: Json = False) -> None:
    """Print a new secret; the old one signs, too, for a day. Enables a webhook that was disabled."""
    with Client() as client:
        _print_secret(client.webhooks.rotate(webhook_id), as_json)


@webhooks.command()
def remove(webhook_id: WebhookId) -> None:
    """Remove a receiver; what was still to be sent to it is dropped."""
    with Client() as client:
        client.webhooks.remove(webhook_id)
    say(f"removed {webhook_id}")


@webhooks.command(name="test")
def send_test(webhook_id: WebhookId, as_json: Json = False) -> None:
    """Send a message of type webhook.test and print its id; `deliveries` tells how it went."""
    with Client() as client:
        delivery = client.webhooks.test(webhook_id)
    if as_json:
        print_json(delivery.model_dump(mode="json"))
    else:
        typer.echo(delivery.id)


@webhooks.command()
def deliveries(webhook_id: WebhookId, as_json: Json = False) -> None:
    """List the last messages, newest first, and how their delivery went."""
    with Client() as client:
        found = client.webhooks.deliveries(webhook_id)
    rows = [
        (one.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S"), one.type, one.job_id or "", one.state,
         str(one.tries), one.error or str(one.status or ""))
        for one in found
    ]  # fmt: skip
    _print_rows(("created", "type", "job", "state", "tries", "answer"), rows, found, as_json)


def _print_secret(webhook: WebhookSecret, as_json: bool) -> None:
    if as_json:
        print_json(webhook.model_dump(mode="json"))
        return
    table = plain_table("", "")
    table.add_row("webhook", webhook.id)
    table.add_row("secret", webhook.secret)
    print_table(table)
    say("The secret is not shown again.")


def _print_rows(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], data: Any, as_json: bool) -> None:
    if as_json:
        print_json([one.model_dump(mode="json") for one in data])
        return
    table = plain_table(*columns)
    for row in rows:
        table.add_row(*row)
    print_table(table)
