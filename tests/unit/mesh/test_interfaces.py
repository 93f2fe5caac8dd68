"""The interfaces and addresses of the mesh, chosen from listed adapters."""

import ipaddress
from pathlib import Path

import pytest

from octaskly.core.model.ids import Address
from octaskly.errors import ConfigError
from octaskly.mesh.discovery import interfaces
from octaskly.mesh.discovery.interfaces import (
    Interface,
    InterfaceKind,
    LocalAddress,
    dial_order,
    dialable_address,
    list_interfaces,
    select_addresses,
)


def interface(name: str, kind: InterfaceKind, *hosts: str, scope: int = 2) -> Interface:
    """Return an interface with these `address/prefix` texts."""
    addresses = []
    for text in hosts:
        ip = ipaddress.ip_interface(text)
        host = f"{ip.ip}%{name}" if ip.version == 6 and ip.is_link_local else str(ip.ip)
        addresses.append(LocalAddress(host, ip.network.prefixlen, name, scope))
    return Interface(name, kind, tuple(addresses))


LO = interface("lo", InterfaceKind.LOOPBACK, "127.0.0.1/8", "::1/128", scope=1)
ETH = interface(
    "eth0", InterfaceKind.LAN, "fe80::1/64", "fd00::1/64", "192.168.1.5/24", scope=2
)
WLAN = interface("wlan0", InterfaceKind.LAN, "10.0.0.5/24", "fe80::2/64", scope=3)
DOCKER = interface("docker0", InterfaceKind.CONTAINER, "172.17.0.1/16", scope=4)
TUN = interface("tun0", InterfaceKind.POINT_TO_POINT, "10.8.0.2/32", scope=5)
ALL = (LO, ETH, DOCKER, TUN)


def hosts(chosen: tuple[LocalAddress, ...]) -> list[str]:
    return [one.host for one in chosen]


def test_only_lan_interfaces_are_used_by_default() -> None:
    """Bridges, tunnels and loopback would advertise unreachable addresses."""
    assert hosts(select_addresses(ALL)) == ["192.168.1.5", "fd00::1", "fe80::1%eth0"]


def test_all_lan_interfaces_are_used_with_link_local_addresses_last() -> None:
    """A laptop on cable and Wi-Fi is reachable over both."""
    assert hosts(select_addresses((ETH, WLAN))) == [
        "192.168.1.5",
        "10.0.0.5",
        "fd00::1",
        "fe80::1%eth0",
        "fe80::2%wlan0",
    ]


def test_a_machine_without_a_network_uses_loopback() -> None:
    """Its own agents still find each other."""
    assert hosts(select_addresses((LO, DOCKER, TUN))) == ["127.0.0.1", "::1"]


def test_named_interfaces_are_used_exactly_whatever_their_kind() -> None:
    """The owner knows better than the default rules."""
    assert hosts(select_addresses(ALL, ["tun0", "lo"])) == [
        "127.0.0.1",
        "10.8.0.2",
        "::1",
    ]


def test_an_unknown_name_is_an_error_that_lists_the_existing_ones() -> None:
    """A typo must not leave an agent silently alone."""
    with pytest.raises(ConfigError, match="etho0") as caught:
        select_addresses(ALL, ["etho0"])

    assert caught.value.field == "interface"
    assert caught.value.hint == "--interface takes one of: docker0, eth0, lo, tun0"


def test_a_named_interface_that_disappears_later_is_no_error() -> None:
    """A cable may be pulled out while the agent runs."""
    assert select_addresses(ALL, ["wlan0"], must_exist=False) == ()


@pytest.mark.parametrize(
    "host",
    [
        "8.8.8.8",
        "192.168.2.7",
        "192.168.1.255",
        "172.17.0.9",
        "127.0.0.1",
        "224.0.0.251",
        "0.0.0.0",
        "fd01::1",
        "::1",
        "fe80::9%wlan7",
        "fe80:0:0:1::9%eth0",
        "not-an-address",
        "",
    ],
)
def test_an_advertised_address_off_our_networks_is_dropped(host: str) -> None:
    """A stranger's advert must not make nodes dial a victim."""
    assert dialable_address(host, select_addresses(ALL)) is None


@pytest.mark.parametrize(
    ("host", "dialled"),
    [
        ("192.168.1.7", "192.168.1.7"),
        ("fd00::7", "fd00::7"),
        ("fe80::7", "fe80::7%eth0"),
        ("fe80::7%2", "fe80::7%eth0"),
        ("fe80::7%eth0", "fe80::7%eth0"),
    ],
)
def test_an_advertised_address_on_our_networks_is_dialled(
    host: str, dialled: str
) -> None:
    """A link-local address gets the scope that it needs."""
    assert dialable_address(host, select_addresses(ALL)) == dialled


def test_a_link_local_address_of_unknown_scope_is_dropped() -> None:
    """With two links it could be on either."""
    assert dialable_address("fe80::7", select_addresses((ETH, WLAN))) is None


def test_a_link_local_ipv4_network_counts_as_a_network() -> None:
    """Two laptops on one cable have nothing else."""
    local = select_addresses((interface("eth0", InterfaceKind.LAN, "169.254.7.1/16"),))

    assert dialable_address("169.254.9.9", local) == "169.254.9.9"


def test_a_peer_is_dialled_on_our_networks_first_and_over_link_local_last() -> None:
    """Within a group the order stays: the address that worked comes first."""
    addresses = [
        Address("fe80::7%eth0", 7878),
        Address("10.9.9.9", 7878),
        Address("name.example", 7878),
        Address("fd00::7", 7878),
        Address("192.168.1.7", 7878),
        Address("fd00::7", 7878),
    ]

    assert [one.host for one in dial_order(addresses, select_addresses(ALL))] == [
        "fd00::7",
        "192.168.1.7",
        "10.9.9.9",
        "name.example",
        "fe80::7%eth0",
    ]


def sys_folder(root: Path, name: str, flags: int, *inside: str) -> None:
    """Write the kernel's description of an interface."""
    folder = root / name
    folder.mkdir()
    (folder / "flags").write_text(f"{flags:#x}\n")
    for path in inside:
        (folder / path).mkdir(parents=True)


def test_the_kind_comes_from_the_kernel_if_it_is_available(tmp_path: Path) -> None:
    """A bridge over a network card is a LAN, one without is for containers."""
    up, loopback, point = 0x1003, 0x9, 0x1091
    sys_folder(tmp_path, "lo", loopback)
    sys_folder(tmp_path, "eth0", up, "device")
    sys_folder(tmp_path, "eth1", 0x1002, "device")
    sys_folder(tmp_path, "vmbr0", up, "bridge", "brif/eth0")
    sys_folder(tmp_path, "mybridge", up, "bridge", "brif/veth7")
    sys_folder(tmp_path, "docker0", up, "bridge", "brif/eth0")
    sys_folder(tmp_path, "vpn", point)
    sys_folder(tmp_path, "l2vpn", up, "tun_flags")

    kinds = {
        path.name: interfaces._classify_interface(path.name, tmp_path)
        for path in tmp_path.iterdir()
    }

    assert kinds == {
        "lo": InterfaceKind.LOOPBACK,
        "eth0": InterfaceKind.LAN,
        "eth1": InterfaceKind.DOWN,
        "vmbr0": InterfaceKind.LAN,
        "mybridge": InterfaceKind.CONTAINER,
        "docker0": InterfaceKind.CONTAINER,
        "vpn": InterfaceKind.POINT_TO_POINT,
        "l2vpn": InterfaceKind.POINT_TO_POINT,
    }


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("lo", InterfaceKind.LOOPBACK),
        ("eth0", InterfaceKind.LAN),
        ("enp3s0", InterfaceKind.LAN),
        ("wlan0", InterfaceKind.LAN),
        ("bond0", InterfaceKind.LAN),
        ("br0", InterfaceKind.LAN),
        ("docker0", InterfaceKind.CONTAINER),
        ("br-0123456789ab", InterfaceKind.CONTAINER),
        ("veth12ab", InterfaceKind.CONTAINER),
        ("cni0", InterfaceKind.CONTAINER),
        ("virbr0", InterfaceKind.CONTAINER),
        ("lxcbr0", InterfaceKind.CONTAINER),
        ("podman1", InterfaceKind.CONTAINER),
        ("tun0", InterfaceKind.POINT_TO_POINT),
        ("tap3", InterfaceKind.POINT_TO_POINT),
        ("wg0", InterfaceKind.POINT_TO_POINT),
        ("ppp0", InterfaceKind.POINT_TO_POINT),
        ("tailscale0", InterfaceKind.POINT_TO_POINT),
    ],
)
def test_the_kind_comes_from_the_name_without_the_kernel(
    name: str, kind: InterfaceKind, tmp_path: Path
) -> None:
    """In some containers `/sys` is not readable."""
    assert interfaces._classify_interface(name, tmp_path) is kind


def test_loopback_of_this_machine_is_listed() -> None:
    """The real adapters have the form that the rules expect."""
    listed = {each.name: each for each in list_interfaces()}

    assert listed["lo"].kind is InterfaceKind.LOOPBACK
    assert "127.0.0.1" in hosts(listed["lo"].addresses)
