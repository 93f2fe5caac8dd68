"""The REST API of a node: on loopback, on the LAN by TLS, and on a UNIX socket."""

from octaskly.api.http.request import HttpTimeouts
from octaskly.api.server.responses import AccessLogEntry
from octaskly.api.server.server import ApiServer, ListenerKind

__all__ = ["AccessLogEntry", "ApiServer", "HttpTimeouts", "ListenerKind"]
