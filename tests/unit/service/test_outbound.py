"""Which addresses the service calls for its users, and that it calls the one it checked."""

import shutil
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest
from webhook_receiver import receiving

from bitpress_service.outbound import ForbiddenAddress, PinnedTransport, Resolve, is_public

INNER = [
    "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fd00::1", "fe80::1%1",
    "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::7f00:1", "2002:7f00:1::1",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", INNER)
def test_what_is_not_reachable_from_everywhere_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_reachable_from_everywhere_is_public(address: str) -> None:
    assert is_public(address)


def answering(*addresses: str) -> Resolve:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return addresses

    return resolve


async def post(url: str, transport: PinnedTransport) -> int:
    async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
        return (await client.post(url, content=b"{}")).status_code


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "0.0.0.0", "0", "[::1]", "[::]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "169.254.169.254", "10.0.0.1", "100.64.0.1", "[fd00::8]",
    ],
)  # fmt: skip
async def test_no_spelling_of_an_inner_address_is_called(host: str) -> None:
    with receiving() as receiver:
        with pytest.raises((ForbiddenAddress, httpx2.ConnectError, httpx2.InvalidURL)):
            await post(f"https://{host}:{receiver.port}/hook", PinnedTransport(private=False))
        assert receiver.messages == []


async def test_one_inner_address_among_public_ones_is_enough_to_refuse() -> None:
    transport = PinnedTransport(private=False, resolve=answering("1.1.1.1", "10.0.0.1"))
    with pytest.raises(ForbiddenAddress, match=r"two\.example has the address 10\.0\.0\.1"):
        await post("https://two.example/hook", transport)


async def test_http_is_refused_unless_private_receivers_are_allowed() -> None:
    with receiving() as receiver:
        with pytest.raises(ForbiddenAddress, match="https://"):
            await post(receiver.url, PinnedTransport(private=False))
        assert await post(receiver.url, PinnedTransport(private=True)) == 204


async def test_the_name_is_asked_for_once_and_kept_in_host() -> None:
    asked = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    with receiving() as receiver:
        url = f"http://rebinding.example:{receiver.port}/hook"
        assert await post(url, PinnedTransport(private=True, resolve=resolve)) == 204
        assert asked == [("rebinding.example", receiver.port)]
        assert receiver.messages[0].headers["host"] == f"rebinding.example:{receiver.port}"


async def test_a_redirect_is_not_followed() -> None:
    with receiving() as inner, receiving() as receiver:
        receiver.answers, receiver.headers = [307], {"Location": inner.url}
        assert await post(receiver.url, PinnedTransport(private=True)) == 307
        assert inner.messages == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for hooks.example, signed by itself, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    path = tmp_path / "hooks.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=hooks.example",
         "-addext", "subjectAltName=DNS:hooks.example", "-keyout", str(path), "-out", str(tmp_path / "cert")],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + (tmp_path / "cert").read_text())
    return path


async def test_tls_is_checked_for_the_name_though_the_address_is_called(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = ssl.create_default_context(cafile=certificate)
    with receiving(context) as receiver:
        transport = PinnedTransport(private=True, resolve=answering("127.0.0.1"), verify=trusting)
        assert await post(f"https://hooks.example:{receiver.port}/hook", transport) == 204
        assert names == ["hooks.example"]
        other = PinnedTransport(private=True, resolve=answering("127.0.0.1"), verify=trusting)
        with pytest.raises(httpx2.ConnectError, match="Hostname mismatch"):
            await post(f"https://other.example:{receiver.port}/hook", other)
        untrusting = PinnedTransport(private=True, resolve=answering("127.0.0.1"))
        with pytest.raises(httpx2.ConnectError, match="self-signed"):
            await post(f"https://hooks.example:{receiver.port}/hook", untrusting)
