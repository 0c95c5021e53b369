"""Where to listen and where replicas are: the addresses that an operator may write.

Replica URLs are a way into the operator's network, so what they may name is closed: http and https, no
credentials, and never a link-local or cloud metadata address in any of its spellings. Private and loopback
addresses are allowed; that is where self-hosted engines live.
"""

import ipaddress
import re
from urllib.parse import urlsplit

_OUTSIDE = re.compile(r"[\x00-\x20\x7f-\U0010ffff\\]")
_HOST = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
_METADATA_HOSTS = frozenset({"metadata", "metadata.google.internal", "instance-data.ec2.internal"})
_METADATA_ADDRESSES = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192"))
)


def base_url(text: str) -> str:
    """A replica's URL, normalised: lower-case scheme and host, no slash at the end.

    Raises ValueError with the end of a sentence that began with the value ("has a query").
    """
    if _OUTSIDE.search(text):
        raise ValueError("has a blank, a backslash or a character that is not ASCII")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError("is not a URL with a valid host and port") from None
    if parts.scheme not in ("http", "https") or "://" not in text:
        raise ValueError("is not an http:// or https:// URL")
    if "@" in parts.netloc:
        raise ValueError("has credentials in it; use upstream.api_key or upstream.headers")
    if "?" in text or "#" in text:
        raise ValueError("has a query or a fragment")
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("is not a URL with a valid host and port")
    host = _checked_host(parts.hostname or "")
    if not _PATH.fullmatch(parts.path) or {".", ".."} & set(parts.path.split("/")):
        raise ValueError("has a path that is not plain")
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"


def _checked_host(host: str) -> str:
    if "%" in host:
        raise ValueError("has an IPv6 zone, which only link-local addresses need; those are not allowed")
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    if ":" in host:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError("is not a URL with a valid host and port") from None
        _refuse_special(address.ipv4_mapped or address)
        return f"[{address.compressed}]"
    if not _HOST.fullmatch(host):
        raise ValueError("is not a URL with a valid host and port")
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", host.rpartition(".")[2]):
        # Resolvers read 0x7f.1 and 2852039166 as addresses; only the plain spelling can be checked.
        try:
            address = ipaddress.IPv4Address(host)
        except ValueError:
            raise ValueError("has an IPv4 address that is not four plain decimal numbers") from None
        _refuse_special(address)
    elif host in _METADATA_HOSTS:
        raise ValueError("is a cloud metadata address, which is never a replica")
    return host


def _refuse_special(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if address.is_link_local or address in _METADATA_ADDRESSES:
        raise ValueError("is a link-local or cloud metadata address, which is never a replica")
    if address.is_unspecified or address.is_multicast:
        raise ValueError("is not the address of one machine")


def host_port(text: str) -> tuple[str, int]:
    """`127.0.0.1:8080`, `[::1]:8080`, `gateway.local:8080`. Port 0 is any free one.

    Raises ValueError with the end of a sentence that began with the value.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        try:
            host = ipaddress.IPv6Address(host[1:-1]).compressed
        except ValueError:
            host = ""
    elif not _HOST.fullmatch(host.lower()):
        host = ""
    if not host or not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("is not host:port, e.g. 127.0.0.1:8080 or [::1]:8080")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`. A name other than localhost: no."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
