"""S7: what a browser accepts that trusts the authority of the mesh."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.async_api import Browser, Error

from octaskly.trust import MeshTls, NodeKey, generate_secret
from octaskly.trust.tls import https_pin
from tests.browser import chromium
from tests.support.forged_sites import BODY, forged, serving

pytestmark = pytest.mark.skipif(
    not shutil.which("certutil"), reason="apt install libnss3-tools"
)
EVERY_NAME_IS_HERE = "--host-resolver-rules=MAP * 127.0.0.1"


async def shown(browser: Browser, host: str, port: int) -> str:
    """Return the text of a page, or the error of the browser."""
    page = await browser.new_page()
    try:
        await page.goto(f"https://{host}:{port}/")
        return await page.inner_text("body")
    except Error as error:
        return error.message
    finally:
        await page.close()


async def test_a_browser_that_trusts_the_mesh_trusts_it_for_local_names_only(
    tmp_path: Path,
) -> None:
    """A thief of the secret cannot pose as a bank, or as a plain host name."""
    secret = generate_secret()
    root = tmp_path / "ca.pem"
    root.write_text(MeshTls(secret, NodeKey.generate()).ca_pem())
    chromium.trust(tmp_path, root)

    seen = {}
    async with chromium.started(tmp_path, EVERY_NAME_IS_HERE) as browser:
        for host in ("box.local", "127.0.0.1", "10.0.0.5", "bank.example", "box"):
            with serving(forged(secret, tmp_path, host)) as port:
                seen[host] = await shown(browser, host, port)

    assert {host for host, text in seen.items() if text == BODY} == {
        "box.local",
        "127.0.0.1",
        "10.0.0.5",
    }, seen
    assert "ERR_CERT" in seen["bank.example"]
    assert "ERR_CERT" in seen["box"]


async def test_a_browser_accepts_the_pin_of_a_node(tmp_path: Path) -> None:
    """For a plain host name, which the mesh cannot certify."""
    key = NodeKey.generate()
    contexts = MeshTls(generate_secret(), key).lan_server_contexts(["box"], [])
    pin = https_pin(key).removeprefix("sha256//")
    pinned = f"--ignore-certificate-errors-spki-list={pin}"

    with serving(contexts("127.0.0.1")) as port:
        async with chromium.started(tmp_path, EVERY_NAME_IS_HERE) as browser:
            warned = await shown(browser, "box", port)
        async with chromium.started(tmp_path, EVERY_NAME_IS_HERE, pinned) as browser:
            accepted = await shown(browser, "box", port)

    assert "ERR_CERT_AUTHORITY_INVALID" in warned
    assert accepted == BODY
