"""Starts the painter: a page on which a drawing becomes a landscape while it is drawn."""
import argparse
import os
import secrets
import socket
import sys
import threading
import webbrowser
from pathlib import Path

from jiidm import __version__
from jiidm.commands.options import add_device
from jiidm.system.errors import InputError, SetupError

_PORT = 8420


def main():
    """Reads the arguments and serves the page until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="default", metavar="FOLDER",
                        help="folder of checkpoints (default: the package's own)")
    add_device(parser)
    parser.add_argument("--styles", type=Path, metavar="FOLDER",
                        help="photos for the style gallery (default: the examples)")
    parser.add_argument("--port", type=int, help=f"port of the page (default: {_PORT}, or any free one)")
    parser.add_argument("--host", metavar="ADDRESS",
                        help="address for other machines, such as 0.0.0.0 (default: this machine only). They need the "
                             "token in the printed address. There is no encryption: use it in a network that you trust")
    parser.add_argument("--time-limit", type=float, default=120, metavar="SECONDS",
                        help="longest time for one picture (default: 120)")
    parser.add_argument("--no-browser", action="store_true", help="do not open the browser")
    args = parser.parse_args()
    _check(args)
    try:
        import uvicorn

        from jiidm.painter.jobs import Jobs, worker_command
        from jiidm.painter.server import Gallery, Server
    except ModuleNotFoundError as error:
        raise SetupError(f"the painter needs {error.name}; pip install 'jiidm[painter]'") from error
    from jiidm.painter.examples import example_gallery

    token = secrets.token_urlsafe(16) if args.host else None
    gallery = Gallery(args.styles) if args.styles else example_gallery()
    listener = _listen(args.host or "127.0.0.1", args.port)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/" + (f"?token={token}" if token else "")

    failure = []

    def say(text):
        if jobs.status == "failed":
            failure.append(text)
            uvicorn_server.should_exit = True
            return
        print(f"jiidm: {text}", file=sys.stderr, flush=True)
        if text == "ready":
            print(f"The painter is at {address} (Ctrl-C ends it)", flush=True)
            if not args.no_browser and not opened and _has_display():
                opened.append(address)
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    opened = []
    jobs = Jobs(worker_command(args.checkpoint, args.device), args.time_limit, say=say)
    server = Server(jobs, gallery, __version__, args.host or "127.0.0.1", token)
    uvicorn_server = uvicorn.Server(uvicorn.Config(
        server.app, http="h11", ws="none", log_level="error", access_log=False, server_header=False,
        proxy_headers=False, limit_concurrency=256, timeout_keep_alive=10, timeout_graceful_shutdown=1,
    ))
    uvicorn_server.run(sockets=[listener])
    if failure:
        raise InputError(failure[0])


def _has_display():
    """Whether a browser would have a window; without one Python may start a browser in the terminal."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _check(args):
    if args.port is not None and not 0 <= args.port < 65536:
        raise InputError(f"--port {args.port}: expected 0 (any free one) to 65535")
    if not args.time_limit > 0:
        raise InputError(f"--time-limit {args.time_limit:g}: expected more than 0 seconds")
    if args.styles and not args.styles.is_dir():
        raise InputError(f"{args.styles}: no such folder; expected a folder of photos")


def _listen(host, port):
    """Returns a socket that listens at the address; without a port at the usual one, or any where that is taken."""
    for number in (port,) if port is not None else (_PORT, 0):
        try:
            family, _, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            listener = socket.create_server(address[:2], family=family, backlog=128)
            # connections inherit it; without it each small answer waits 40 ms for the client's acknowledgement
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return listener
        except OSError as error:
            reason = error.strerror or error
    raise InputError(f"{host}, port {port if port is not None else _PORT}: cannot be served at ({reason}); "
                     f"give another with --host or --port")
