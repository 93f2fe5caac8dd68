"""Default ports, names and amounts of settings, and their bounds."""

from __future__ import annotations

EXIT_CONFIG = 78  #: sysexits(3) EX_CONFIG: systemd does not restart in a loop

API_PORT = 3000
PEER_PORT = 7878
LAN_PORT = 3443
PAIRING_PORT = 7879  #: while an invite is open, or a machine asks to join
SOCKET_GROUP = "octaskly"  #: its members may use the local socket as admins
LOOPBACK = ("127.0.0.1", "::1")
PORT_MAX = 65535
RETENTION_S = 7 * 86_400
RETAINED_BYTES_MIN = 16_000_000
QUEUE_MAX = 5_000_000
QUEUED_BYTES_PER_SUBJECT = 256_000_000
WEBHOOKS_PER_SUBJECT = 1000  #: tasks that wait or run, and notifications not yet sent
RATE_STRANGER = 600
DRAIN_S = 30
SLOTS_MAX = 4096
OUTPUT_CAP_BYTES_MIN = 5_000_000  #: two beginnings of 1 MiB, and as much for the ends
DURABILITIES = ("normal", "strict")
VISITOR_TASKS = ("marked", "all")
CONNECTIONS_MAX = 512
CONNECTIONS_PER_ADDRESS = 64
COUNT_MAX = 65_536
STREAMS_MAX = 256  #: half of all connections, so that other requests get one
STREAMS_PER_SUBJECT = 64
HEADER_S = 10
HEADER_BYTES = 8190
HEADER_BYTES_MIN = 2048  #: enough for a token
HEADER_BYTES_MAX = 64 << 10
BODY_S = 10
BODIES_BYTES_MIN = 32 << 20  #: size of the largest body
STALL_S = 30
DEADLINE_S_MAX = 3600
PERIOD_S_MAX = 36_500 * 86_400  #: a century, so its end has a year of four digits
HANDSHAKES_MAX = 64
HANDSHAKES_PER_ADDRESS = 8
HANDSHAKE_S = 5
