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
RETAINED_TASKS = 2_000_000
RETAINED_BYTES_MIN = 16 << 20
QUEUE_MAX = 5_000_000
RATE_ADMIN = 600_000
RATE_CLIENT = 120_000
RATE_VIEWER = 12_000
RATE_STRANGER = 600
DRAIN_S = 30
KEEP_OLD_SECRET_S = 7 * 86_400
KILL_GRACE_S = 10
KILL_GRACE_S_MAX = 3600
DRAIN_S_MAX = 86_400
SLOTS_MAX = 4096
OUTPUT_CAP_BYTES = 64 << 20
FILES_QUOTA_BYTES_MIN = 1 << 20
OUTPUT_CAP_BYTES_MIN = 4 << 20
OUTPUT_CAP_BYTES_MAX = 1 << 29
DURABILITIES = ("normal", "strict")
ROTATE_WITHIN_S = 86_400
CONNECTIONS_MAX = 512
CONNECTIONS_PER_ADDRESS = 64
COUNT_MAX = 65_536
STREAMS_MAX = 256  #: half of all connections, so that other requests get one
HEADER_S = 10
HEADER_BYTES = 8190
HEADER_BYTES_MIN = 2048  #: enough for a token
HEADER_BYTES_MAX = 64 << 10
BODY_S = 10
BODIES_BYTES = 96 << 20
BODIES_BYTES_MIN = 32 << 20  #: size of the largest body
STALL_S = 30
DEADLINE_S_MAX = 3600
HANDSHAKES_MAX = 64
HANDSHAKES_PER_ADDRESS = 8
HANDSHAKE_S = 5
LAN_HANDSHAKES_MAX = 128
LAN_HANDSHAKES_PER_ADDRESS = 64
