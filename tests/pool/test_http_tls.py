"""The HTTP client over TLS: the chain is checked, connections are kept, a wrong certificate is a clear error."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from halo_core.pool.http import ConnectError, HttpClient
from tests.stub_server import StubServer, _Exchange

x509 = pytest.importorskip("cryptography.x509")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of `localhost` with its key, in one PEM file."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


async def test_requests_and_streams_go_over_one_checked_connection(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    stub = StubServer()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Exchange(stub), "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"

    client = HttpClient(url, ssl_context=ssl.create_default_context(cafile=certificate))
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
    for _ in range(3):
        assert (await client.request("GET", "/v1/models")).status == 200
        stream = await client.open("POST", "/v1/chat/completions", body)
        assert len([event async for event in stream.events()]) > 4
    assert stub.connections == 1
    client.close()

    distrustful = HttpClient(url)
    with pytest.raises(ConnectError, match=r"(?i)certificate"):
        await distrustful.request("GET", "/")
    server.close()
