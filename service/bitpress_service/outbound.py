"""HTTP to addresses that users name, kept from reaching what only this machine may reach.

A name is resolved once, every address it has must be a public one, and the connection goes to the address that was
checked: a name that answers otherwise a moment later (DNS rebinding) changes nothing. Redirects are not followed.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence

import httpx2

from bitpress.errors import ForbiddenAddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


async def resolve(host: str, port: int) -> Sequence[str]:
    """Every address of `host`. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class PinnedTransport(httpx2.AsyncBaseTransport):
    """Sends each request to an address that was checked, with the name it was meant for in Host and in TLS.

    `private`: http, and addresses of this machine and its networks, are allowed. Requests raise ForbiddenAddress.
    """

    def __init__(self, private: bool, resolve: Resolve = resolve, verify: ssl.SSLContext | bool = True) -> None:
        self._private = private
        self._resolve = resolve
        # No connection is kept: the next request's name may have another address.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._transport = httpx2.AsyncHTTPTransport(verify=verify, trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        host, port = request.url.host, request.url.port or (443 if request.url.scheme == "https" else 80)
        check_scheme(request.url.scheme, self._private)
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpx2.ConnectError(f"{host}: {error}", request=request) from error
        if not self._private and (bad := [address for address in addresses if not is_public(address)]):
            raise ForbiddenAddress(f"{host} has the address {bad[0]}, which is not a public one")
        request.extensions = {**request.extensions, "sni_hostname": host}
        # The header Host was set from the URL when the request was built.
        request.url = request.url.copy_with(host=addresses[0])
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        await self._transport.aclose()


def check_scheme(scheme: str, private: bool) -> None:
    """Raises ForbiddenAddress for http, unless receivers may be private."""
    if scheme != "https" and not private:
        raise ForbiddenAddress("expected an address that begins with https://")


def is_public(address: str) -> bool:
    """Whether an address is reachable from everywhere, also where it is an IPv4 one inside of an IPv6 one."""
    ip: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast
