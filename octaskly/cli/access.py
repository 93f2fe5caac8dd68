"""`octaskly token`, `secret`, `ca`: what lets people and machines in."""

from __future__ import annotations

from pathlib import Path

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


@click.group()
def secret() -> None:
    """Make the secret that all nodes of a mesh share."""


@secret.command("new")
def new_secret() -> None:
    """Print a new mesh secret, and nothing else.

    Put it into one file on each machine, readable by its user only:
    octaskly secret new > mesh.key; chmod 600 mesh.key
    """
    # Imported here, as below: cryptography costs more than a quick command takes.
    from octaskly.trust import generate  # noqa: PLC0415

    click.echo(generate().lines().strip())


@click.command()
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    help="The mesh secret (default: where the agent of this user has it).",
)
@click.pass_obj
def ca(choice: Choice, secret_file: Path | None) -> None:
    """Print the CA certificate of the mesh, for HTTPS clients.

    curl --cacert mesh-ca.pem https://NODE:3443/health
    """
    from octaskly.config import AgentOptions, resolve  # noqa: PLC0415
    from octaskly.trust import MeshTrust, NodeKey, load  # noqa: PLC0415

    options = AgentOptions(
        name=choice.node, state_dir=choice.state_dir, secret_file=secret_file
    )
    mesh_secret = load(resolve(options, choice.environ).paths.secret)
    # Any node key will do: the CA depends on the secret alone.
    click.echo(MeshTrust(mesh_secret, NodeKey.generate()).ca_pem().strip())
