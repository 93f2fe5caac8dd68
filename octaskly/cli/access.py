"""`octaskly token`, `secret`, `ca`: what lets people and machines in."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octaskly.cli.choice import Choice
from octaskly.cli.render import Duration

if TYPE_CHECKING:
    from octaskly.trust import MeshSecret

ROLES = ("admin", "client", "viewer")
DAY_S = 86400


@click.group(epilog="Example: octaskly token create --role viewer")
def token() -> None:
    """Make tokens for the REST API."""


@token.command(
    epilog="Example: octaskly token create --role client --subject ci --expires 30d"
)
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


@click.group(epilog="Example: octaskly secret new > mesh.key")
def secret() -> None:
    """Make the secret that all nodes of a mesh share."""


@secret.command("new", epilog="Example: octaskly secret new > mesh.key")
def new_secret() -> None:
    """Print a new mesh secret, and nothing else.

    Put it into one file on each machine, readable by its user only:
    octaskly secret new > mesh.key; chmod 600 mesh.key
    """
    # Imported here, as below: cryptography costs more than a quick command takes.
    from octaskly.trust import generate  # noqa: PLC0415

    click.echo(generate().lines().strip())


@secret.command("webhook-key", epilog="Example: octaskly secret webhook-key")
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path),
    help="The mesh secret (default: where the agent of this user has it).",
)
@click.pass_obj
def webhook_key(choice: Choice, secret_file: Path | None) -> None:
    """Print the key with which receivers of --notify-url check who sent a message.

    It is in the form of Standard Webhooks, and tells nothing of the secret.
    """
    key = _secret_of(choice, secret_file).webhook_key()
    click.echo(f"whsec_{b64encode(key).decode()}")


@click.command(epilog="Example: octaskly ca > mesh-ca.pem")
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
    from octaskly.trust import MeshTrust, NodeKey  # noqa: PLC0415

    mesh_secret = _secret_of(choice, secret_file)
    # Any node key will do: the CA depends on the secret alone.
    click.echo(MeshTrust(mesh_secret, NodeKey.generate()).ca_pem().strip())


def _secret_of(choice: Choice, secret_file: Path | None) -> MeshSecret:
    from octaskly.config.agent import configure  # noqa: PLC0415
    from octaskly.trust import Keyring  # noqa: PLC0415

    flags = choice.flags() | {"secret_file": secret_file}
    paths = configure(flags, choice.environ).paths
    return Keyring(paths.secret, paths.state, choice.environ).load()
