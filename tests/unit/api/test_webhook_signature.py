"""Webhook signatures follow Standard Webhooks."""

from __future__ import annotations

import base64

from octaskly.api.webhook_sender import signature_headers
from octaskly.trust import generate_secret
from octaskly.trust.mesh_secret import MeshSecret


def test_the_signature_matches_the_standard() -> None:
    """The example comes from the libraries of the standard."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")

    headers = signature_headers(
        key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )

    assert headers == {
        "Content-Type": "application/json",
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_the_key_follows_from_the_secret_in_force() -> None:
    """All nodes derive the same key; a renewed secret gives another one."""
    one, two = generate_secret().generations[0], generate_secret().generations[0]
    secret, renewed = MeshSecret((one,)), MeshSecret((one, two))

    assert secret.webhook_key() == MeshSecret((one,)).webhook_key()
    assert len({secret.webhook_key(), renewed.webhook_key(), one, two}) == 4
    assert secret.webhook_key() != secret.token_key(1)
