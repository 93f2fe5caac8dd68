"""`octaskly secret`, `ca`: the mesh secret and the keys derived from it."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import click

from octaskly.cli.context import CliContext
from octaskly.cli.output.terminal import print_text
from octaskly.errors import ConfigError

if TYPE_CHECKING:
    from octaskly.trust import MeshSecret


@click.group(epilog="Example: octaskly secret new | install -m 600 /dev/stdin mesh.key")
def secret() -> None:
    """Create the secret that all nodes of a mesh share."""


@secret.command(
    "new", epilog="Example: octaskly secret new | install -m 600 /dev/stdin mesh.key"
)
def new_secret() -> None:
    """Print a new mesh secret, and nothing else.

    Store it in a file on each machine that only the agent's user can read.
    """
    # Imported here and below, because importing cryptography slows other commands.
    from octaskly.trust import generate_secret  # noqa: PLC0415

    print_text(generate_secret().to_text().strip())


@secret.command("webhook-key", epilog="Example: octaskly secret webhook-key")
@click.option(
    "--secret-file",
    type=click.Path(readable=False, path_type=Path),
    help="The mesh secret (default: the agent's).",
)
@click.pass_obj
def webhook_key(context: CliContext, secret_file: Path | None) -> None:
    """Print the key with which a webhook verifies messages.

    It is for the receivers of --notify-url, has the form of Standard Webhooks, and
    reveals nothing about the mesh secret.
    """
    key = _secret_of(context, secret_file).webhook_key()
    print_text(f"whsec_{b64encode(key).decode()}")


@click.command(epilog="Example: octaskly ca > mesh-ca.pem")
@click.option(
    "--secret-file",
    type=click.Path(readable=False, path_type=Path),
    help="The mesh secret (default: the agent's).",
)
@click.option(
    "--node",
    "is_for_node",
    is_flag=True,
    help="Print the pin of this node's self-signed certificate instead.",
)
@click.pass_obj
def ca(context: CliContext, secret_file: Path | None, *, is_for_node: bool) -> None:
    """Print the CA certificate of the mesh, for HTTPS clients.

    It is valid for private addresses and for names that end in .local, .lan, .internal
    or .home.arpa: curl --cacert mesh-ca.pem https://NODE.local:3443/health

    For any other name or address, a node presents a self-signed certificate, which
    clients check by its pin: curl -k --pinnedpubkey PIN https://NODE:3443/health
    """
    from octaskly.trust import MeshTls, NodeKey  # noqa: PLC0415

    if is_for_node:
        print_text(_node_pin(context))
        return
    mesh_secret = _secret_of(context, secret_file)
    # Any node key works, because the CA depends only on the secret.
    print_text(MeshTls(mesh_secret, NodeKey.generate()).ca_pem().strip())


def _node_pin(context: CliContext) -> str:
    from octaskly.config.agent import load_agent_config  # noqa: PLC0415
    from octaskly.trust import NodeKey  # noqa: PLC0415
    from octaskly.trust.tls import https_pin  # noqa: PLC0415

    state = load_agent_config(context.agent_flags(), context.environ).paths.state
    try:
        return https_pin(NodeKey.load(state))
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no node key in {state}",
            hint="octaskly agent    creates it at its first start",
        ) from error


def _secret_of(context: CliContext, secret_file: Path | None) -> MeshSecret:
    from octaskly.config.agent import load_agent_config  # noqa: PLC0415
    from octaskly.trust import SecretFile  # noqa: PLC0415

    flags = context.agent_flags() | {"secret_file": secret_file}
    paths = load_agent_config(flags, context.environ).paths
    path = secret_file or _secret_file_of_agent(paths.description) or paths.secret
    try:
        return SecretFile(path, paths.state, context.environ).load()
    except ConfigError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            # The original hint is to create a secret, which would belong to no mesh.
            error.hint = "--secret-file FILE    the secret of the mesh"
        raise


def _secret_file_of_agent(description: Path) -> Path | None:
    """Return the secret file of the running agent, None if no agent runs."""
    try:
        return Path(json.loads(description.read_text())["secret_file"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
