"""`server.redis_url`: where Redis is, in the forms that people know.

    redis://[user:password@]host[:port][/db]               rediss:// with TLS, ?ca=FILE for a CA of one's own
    unix://[user:password@]/path/of/socket[?db=N]
    redis+sentinel://[user:password@]host:26379,host2:26379/name[/db]
    redis+cluster://[user:password@]host:port,host2:port

`rediss+sentinel` and `rediss+cluster` are the latter two with TLS. A user or password with `@`, `/` or `:` in
it is percent-encoded. Sentinels that want a password have it in `?sentinel_password=` (and
`sentinel_username`).
"""

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["SCHEMES", "RedisUrl", "parse_redis_url"]

SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://", "redis+cluster://")

Form = Literal["server", "socket", "sentinel", "cluster"]
_FORMS: dict[str, tuple[Form, bool]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("socket", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_PORTS: dict[Form, int] = {"server": 6379, "socket": 0, "sentinel": 26379, "cluster": 6379}
_OPTIONS = frozenset({"ca", "db", "sentinel_username", "sentinel_password"})


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """`str()` of it is fit for logs."""

    form: Form
    hosts: tuple[tuple[str, int], ...] = ()
    """The server; or sentinels, or some nodes of the cluster, to ask for it."""
    path: str = ""
    """Of a socket."""
    service: str = ""
    """The name that sentinels know the master by."""
    db: int = 0
    tls: bool = False
    ca: str | None = None
    """File with the CA that signed the server's certificate; None: those that the system trusts."""
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        if self.form == "socket":
            return f"unix://{self.path}"
        scheme = ("rediss" if self.tls else "redis") + ("" if self.form == "server" else f"+{self.form}")
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{scheme}://{hosts}" + (f"/{self.service}" if self.service else "")


def parse_redis_url(url: str) -> RedisUrl:
    """Raises ValueError, whose message never has a part of `url` that could be a secret."""
    scheme, _, rest = url.partition("://")
    if scheme not in _FORMS:
        raise ValueError(f"begins with {', '.join(SCHEMES)}")
    form, tls = _FORMS[scheme]
    # Lists of hosts are no URL that urlsplit would take apart: authority, path and query are.
    parts = urlsplit(f"x://{rest}")
    if parts.fragment:
        raise ValueError("has a `#`: write %23")
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    try:
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError("has a query that is not `?name=value&name=value`") from None
    if unknown := options.keys() - _OPTIONS:
        raise ValueError(f"knows ?{', ?'.join(sorted(_OPTIONS))}, not {len(unknown)} of those that are given")
    service, db = "", options.get("db", "")
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    if form == "socket":
        if hosts or not segments:
            raise ValueError("names the path of a socket: unix:///run/redis.sock")
    elif form == "sentinel":
        if not segments:
            raise ValueError("ends with the name that the sentinels know the master by: /mymaster")
        service, *segments = segments
    if form != "socket":
        if len(segments) > 1 or (segments and db):
            raise ValueError("has more behind the hosts than a database's number")
        db = segments[0] if segments else db
    if not (db or "0").isdecimal():
        raise ValueError("ends with a database's number")
    if form == "cluster" and int(db or 0):
        raise ValueError("names a database: a cluster has 0 only")
    if form == "server" and "," in hosts:
        raise ValueError("names several hosts: for that it is redis+sentinel:// or redis+cluster://")
    if options.get("ca") and not tls:
        raise ValueError("has a `ca`, but TLS is what rediss:// is for")
    return RedisUrl(
        form=form,
        hosts=() if form == "socket" else tuple(_host(each, _PORTS[form]) for each in hosts.split(",")),
        path=unquote(parts.path) if form == "socket" else "",
        service=service,
        db=int(db or 0),
        tls=tls,
        ca=options.get("ca") or None,
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=options.get("sentinel_username") or None,
        sentinel_password=options.get("sentinel_password") or None,
    )


def _host(written: str, default: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"x://{written}")
        port = parts.port
    except ValueError:
        raise ValueError("has a host with a port that is none") from None
    if not parts.hostname or parts.path:
        raise ValueError("has an empty host")
    return parts.hostname, default if port is None else port
