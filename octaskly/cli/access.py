"""`octaskly token`, `secret`, `ca`: what lets people and machines in."""

from __future__ import annotations

import click

from octaskly.cli.choice import Choice
from octaskly.cli.render import Duration

ROLES = ("admin", "client", "viewer")
DAY_S = 86400


@click.group()
def token() -> None:
    """Make tokens for the REST API."""


@token.command()
@click.option("--role", type=click.Choice(ROLES), required=True, help="What it may do.")
@click.option(
    "--expires", type=Duration(), default=DAY_S, metavar="T", help="24h, up to 90d."
)
@click.option("--subject", metavar="NAME", help="Who it is for, as tasks show it.")
@click.pass_obj
def create(choice: Choice, role: str, expires: int, subject: str | None) -> None:
    """Print a new token, and nothing else.

    admin may do everything; client submits, and cancels its own; viewer reads.
    """
    with choice.client() as client:
        minted = client.create_token(role=role, expires_s=expires, subject=subject)
    click.echo(minted)
