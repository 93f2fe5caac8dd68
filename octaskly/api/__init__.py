"""REST API of a node, over loopback HTTP, LAN HTTPS and a UNIX socket."""

from octaskly.api.http.handler_types import HttpTimeouts
from octaskly.api.server.request_lifecycle import AccessLogEntry
from octaskly.api.server.server import ApiServer, ListenerKind

__all__ = ["AccessLogEntry", "ApiServer", "HttpTimeouts", "ListenerKind"]
