"""The REST API of a node: on loopback, on the LAN by TLS, and on a UNIX socket."""

from octaskly.api.http.request import Deadlines
from octaskly.api.server.responses import Served
from octaskly.api.server.server import ApiServer, Site

__all__ = ["ApiServer", "Deadlines", "Served", "Site"]
