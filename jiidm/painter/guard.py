"""Who may ask: checks of Host, Origin and token, and the headers that every answer has."""
import hmac
import ipaddress
import json
from urllib.parse import urlsplit

HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}
_LOCAL = ("127.0.0.1", "localhost", "::1")


class Guard:
    """ASGI middleware around the whole application.

    A request must name this server in `Host` (a page of another name that resolves to this address may not), must come
    from this page if it comes from a page (`Origin`), and must bring the token, if there is one, for everything below
    /api/.
    """

    def __init__(self, app, host="127.0.0.1", token=None):
        """
        Args:
            app: the ASGI application.
            host: the address that the server is bound to.
            token: what `Authorization: Bearer` must bring (None: nothing).
        """
        self._app, self._host, self._token = app, host, token

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_encoded(HEADERS, message["headers"])]
            await send(message)

        status, error = self._refusal(scope)
        if status is None:
            await self._app(scope, receive, send_with_headers)
            return
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
                   (b"connection", b"close")]
        await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope):
        """Returns (status, text), or (None, None) for a request that may pass."""
        headers = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value.decode("latin-1"))
        hosts, origins = headers.get(b"host", []), headers.get(b"origin", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 421, "Host: not the address of this server; open the address that it prints"
        if len(origins) > 1 or origins and urlsplit(origins[0])[:2] != ("http", hosts[0]):
            return 403, "Origin: requests from other sites are refused"
        if headers.get(b"sec-fetch-site", ["none"])[0] not in ("none", "same-origin") and scope["method"] != "GET":
            return 403, "Sec-Fetch-Site: requests from other sites are refused"
        if self._token and scope["path"].startswith("/api/"):
            given = headers.get(b"authorization", [""])[0]
            if not hmac.compare_digest(given.encode("latin-1"), f"Bearer {self._token}".encode()):
                return 401, "Authorization: expected the token; open the address that the server prints"
        return None, None

    def _is_ours(self, host):
        try:
            parts = urlsplit(f"//{host}")
            name = parts.hostname
            parts.port  # noqa: B018 - raises ValueError where it is no number; any will do, as of a tunnel
        except ValueError:
            return False
        if not name or parts.username is not None or parts.path or parts.query or parts.fragment:
            return False
        if name in _LOCAL or name == self._host:
            return True
        # bound to all addresses: any of them as numbers; a name could be one that an attacker lets resolve to us
        return self._host in ("0.0.0.0", "::") and _is_address(name)


def _is_address(name):
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _encoded(headers, present):
    names = {name for name, _ in present}
    return [(k.encode(), v.encode()) for k, v in headers.items() if k.encode() not in names]
