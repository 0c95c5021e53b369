"""The data path's HTTP client: `contract.Transport` on aiohttp.

What it promises, beyond the contract:

- **Bytes only.** `Exchange.events` returns what one read brought; nothing here knows a line or an event.
- **Nothing implicit.** No redirects, proxies, cookies or decompression; answers that are encoded all the
  same are refused. No timeouts but the one for connecting: the caller knows what a wait is worth.
- **One retry, and only the safe one.** Engines close idle connections just as we write to them. A reused
  connection that dies before the first byte of the answer is replaced once, by a connection out of a second
  session that keeps none alive: fresh by construction, however many dead ones the pool still holds.
- **Dropping is immediate.** A connection that is given up is aborted, not closed: no waiting for unsent
  bytes or for a TLS farewell that a stuck peer never sends.
- **Bounded.** Read buffer: see `sending.py`. Head of an answer, interim (1xx) answers included: 64 KiB.

Most of it is aiohttp configured; `connections.py` corrects what aiohttp cannot be told (each point names its
reason there, and has its test). Connections are not limited in number: the gateway bounds what is in flight.

    sending.py       the transport: sessions, the one retry, statistics, the end
    connections.py   a connection, from its making until it is aborted
    exchanges.py     an answer under way
    resolving.py     names to addresses
    errors.py        foreign errors to ours
"""

from backends.transport.exchanges import AiohttpExchange
from backends.transport.sending import AiohttpTransport, TransportStatistics

__all__ = ["AiohttpExchange", "AiohttpTransport", "TransportStatistics"]
