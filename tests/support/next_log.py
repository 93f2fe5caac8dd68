"""An agent whose program writes version 2 of the log, unreadable for others."""

from __future__ import annotations

import sys

from octaskly.cli import main
from octaskly.core.model.settings import Settings

if __name__ == "__main__":
    defaults = Settings.__init__.__kwdefaults__
    assert defaults is not None
    defaults["log_version"] = 2
    sys.exit(main())
