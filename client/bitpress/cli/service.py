"""Commands on the service itself: its cluster, the models that it reads."""

import typer

from bitpress.cli.app import MACHINE, Json, app
from bitpress.cli.output import plain_table, print_json, print_table
from bitpress.client import Client


@app.command(rich_help_panel=MACHINE)
def cluster(as_json: Json = False) -> None:
    """Show dispatchers, their devices, and how many jobs wait at which priority."""
    with Client() as client:
        found = client.cluster()
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    table = plain_table("dispatcher", "cluster", "devices", "free", "hosts", "")
    for each in found.dispatchers:
        devices = each.devices
        counts = (
            (f"{devices.total} {devices.kind}", str(devices.free), str(len(devices.nodes))) if devices else ("?",) * 3
        )
        table.add_row(each.owner, each.cluster, *counts, "busy" if each.busy else "idle")
    print_table(table)
    waiting = ", ".join(f"{level.jobs} at priority {level.priority}" for level in found.queue) or "none"
    typer.echo(
        f"jobs that run: {found.running}; that wait: {waiting}; that pause before another attempt: {found.delayed}"
    )


@app.command(rich_help_panel=MACHINE)
def models(as_json: Json = False) -> None:
    """List the models the service offers, and where others may lie."""
    with Client() as client:
        found = client.models()
    if as_json:
        print_json(found)
        return
    table = plain_table("model", "family")
    for model in found["data"]:
        table.add_row(model["uri"], model["model_type"] or "?")
    print_table(table)
    sources = found["sources"]
    if not sources["limited"]:
        typer.echo("Jobs may name any model that the service's user may read.")
        return
    for name in ("model_roots", "model_buckets", "model_hub", "text_roots"):
        typer.echo(f"{name.replace('_', ' ')}: {', '.join(sources[name]) or 'none'}")
