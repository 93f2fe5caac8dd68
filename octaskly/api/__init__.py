"""The REST API of a node: on loopback, on the LAN by TLS, and on a UNIX socket."""

from octaskly.api.answering import Served
from octaskly.api.routing import Deadlines
from octaskly.api.server import ApiServer, Site

__all__ = ["ApiServer", "Deadlines", "Served", "Site"]
