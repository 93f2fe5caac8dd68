"""What must be there before a node can live: folders, and its description."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from octaskly.config.agent import AgentConfig
from octaskly.config.places import Paths
from octaskly.errors import ConfigError


def make_folders(paths: Paths) -> None:
    """Create the folders of an agent; its state is for its own user alone.

    Raises:
        ConfigError: a folder cannot be made or entered.
    """
    for folder, mode in (
        (paths.state, 0o700),
        (paths.outputs, 0o700),
        (paths.workdir, 0o755),
        (paths.runtime, 0o755),
    ):
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the folder {folder}: {error.strerror}",
                hint="octaskly agent --state-dir DIR uses another one",
            ) from error
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(
                f"the folder {folder} is not writable for this user",
                hint="octaskly agent --state-dir DIR uses another one",
            )


def write_description(config: AgentConfig, fields: Mapping[str, object]) -> None:
    """Write `agent.json` in one step: readers see all of it or nothing."""
    path = config.paths.description
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(fields, indent=2) + "\n")
    draft.chmod(0o600)
    draft.replace(path)
