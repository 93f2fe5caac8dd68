"""Copies the modules that the dashboard is made of into `octaskly/static/vendor`.

    python packages/vendor.py

Run it after a change of `packages/vendored/package.json` and its lock file. npm checks
each package against the lock; what is written here is listed with its SHA-256, which a
test and whoever packs Octaskly can check without npm. Browsers read the files as they
are: no build step follows.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKED = ROOT / "packages/vendored"
VENDOR = ROOT / "octaskly/static/vendor"
HASHES = "SHA256SUMS"

SOURCES = {
    "preact.js": "preact/dist/preact.mjs",
    "hooks.js": "preact/hooks/dist/hooks.mjs",
    "htm.js": "htm/dist/htm.mjs",
    "signals.js": "@preact/signals/dist/signals.mjs",
    "signals-core.js": "@preact/signals-core/dist/signals-core.mjs",
    "uplot.js": "uplot/dist/uPlot.iife.min.js",
    "uplot.css": "uplot/dist/uPlot.min.css",
    "LICENSE.preact": "preact/LICENSE",
    "LICENSE.htm": "htm/LICENSE",
    "LICENSE.signals": "@preact/signals/LICENSE",
    "LICENSE.signals-core": "@preact/signals-core/LICENSE",
    "LICENSE.uplot": "uplot/LICENSE",
}
#: An import map would be an inline script, which the page's policy forbids.
PLACES = {
    "preact": "./preact.js",
    "preact/hooks": "./hooks.js",
    "@preact/signals-core": "./signals-core.js",
}
_IMPORT = re.compile(r'\bfrom"([^".][^"]*)"')
_MAP = re.compile(r"^//# sourceMappingURL=.*\n?", re.MULTILINE)


def main() -> None:
    """Install what is locked into a folder of its own, and copy from there."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(LOCKED / name, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)  # noqa: S603
        files = dict(_files(Path(folder) / "node_modules"))
    shutil.rmtree(VENDOR, ignore_errors=True)
    VENDOR.mkdir(parents=True)
    for name, text in files.items():
        (VENDOR / name).write_bytes(text)
    (VENDOR / HASHES).write_text(hashes(VENDOR))


def hashes(folder: Path) -> str:
    """Return the list of all files but itself, as `sha256sum` writes it."""
    return "".join(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(folder.iterdir())
        if file.name != HASHES
    )


def _files(modules: Path) -> Iterator[tuple[str, bytes]]:
    for name, source in SOURCES.items():
        text = (modules / source).read_text(encoding="utf-8")
        if name.endswith(".js"):
            text = _IMPORT.sub(lambda found: f'from"{PLACES[found[1]]}"', text)
            text = _MAP.sub("", text).rstrip() + "\n"
        if name == "uplot.js":
            # It is published minified as a script only, which names one variable.
            text += "export default uPlot;\n"
        yield name, text.encode()


if __name__ == "__main__":
    main()
