"""The painter's server: the page, and the few addresses that it and scripts ask (docs/painter.md)."""
import asyncio
import base64
import contextlib
import json
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from jiidm.data.color_maps import COLOR_TABLES
from jiidm.data.labels import CLASSES, fit_labels
from jiidm.data.project import Project, parse_project, settings_from_dict
from jiidm.painter.guard import Guard
from jiidm.painter.jobs import FINAL, Busy
from jiidm.painter.uploads import MAP_BYTES, PHOTO_BYTES, PIXELS, TooLarge, decode_any_map, decode_map, decode_photo
from jiidm.painter.worker import png_of
from jiidm.system.errors import InputError

PAGE = Path(__file__).parent / "page"
_BODY_BYTES = (MAP_BYTES + PHOTO_BYTES) * 4 // 3 + 2**16  # a project with the largest map and photo, in base64
_BODY_SECONDS = 30
_DRAINED_BYTES = 2**26  # of a body that is too large: read to its end, so that the client gets to read the answer
_READING = 8  # bodies that are read and decoded at a time
_PICTURES = ("image/png", "image/jpeg", "image/webp")


class Gallery:
    """The example styles and label maps that the page offers."""

    def __init__(self, styles, maps=None, pairs=None, style_maps=None):
        """
        Args:
            styles: a folder of photos, or None.
            maps: a folder of label PNGs, or None.
            pairs: a dict {"MAP.png": "STYLE.jpg"}: the style that each map is shown with first.
            style_maps: a folder with the label PNGs of styles, STEM.png each, or None.
        """
        self.styles = {p.stem: p for p in _files(styles, (".jpg", ".jpeg", ".png", ".webp"))}
        self.maps = {p.stem: p for p in _files(maps, (".png",))}
        self.style_maps = {p.stem: p for p in _files(style_maps, (".png",))}
        self._pairs = {Path(m).stem: Path(s).stem for m, s in (pairs or {}).items()}

    def describe(self):
        """Returns what GET /api/model says of it."""
        return {
            "styles": [{"name": name, "title": _title(name)} for name in self.styles],
            "examples": [{"name": name, "title": _title(name), "style": self._pairs.get(name)} for name in self.maps],
        }


def _files(folder, suffixes):
    return sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in suffixes) if folder else []


def _title(name):
    return name.replace("_", " ").replace("-", " ").capitalize()


class Server:
    """The answers. `app` is the ASGI application."""

    def __init__(self, jobs, gallery, version, host="127.0.0.1", token=None):
        """
        Args:
            jobs: the `Jobs`; it is started and closed with the application.
            gallery: the `Gallery`.
            version: the package's version, for GET /api/model.
            host, token: as of `Guard`.
        """
        self._jobs, self._gallery, self._version = jobs, gallery, version
        self._reading = 0
        routes = [
            Route("/", lambda request: FileResponse(PAGE / "index.html")),
            Route("/healthz", self.health),
            Route("/api/model", self.model),
            Route("/api/styles/{name}", self.style),
            Route("/api/examples/{name}", self.example),
            Route("/api/picture", self.picture, methods=["POST"]),
            Route("/api/segment", self.segment, methods=["POST"]),
            Route("/api/labels", self.labels, methods=["POST"]),
            Mount("/page", StaticFiles(directory=PAGE)),
        ]
        handlers = {HTTPException: _http_error, InputError: _input_error, Busy: _busy, ClientDisconnect: _gone}
        app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        self.app = Guard(app, host, token)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app):
        self._jobs.start()
        yield
        await self._jobs.close()

    async def health(self, request):
        """GET /healthz: whether pictures can be made."""
        jobs = self._jobs
        return JSONResponse({"status": jobs.status, "detail": jobs.detail}, 200 if jobs.status == "ready" else 503)

    async def model(self, request):
        """GET /api/model: classes, sizes, styles, limits."""
        self._check_ready()
        limits = {"map_bytes": MAP_BYTES, "photo_bytes": PHOTO_BYTES, "pixels": PIXELS}
        return JSONResponse({"name": "jiidm", "version": self._version, **self._jobs.model, **self._gallery.describe(),
                             "color_tables": list(COLOR_TABLES), "limits": limits})

    async def style(self, request):
        """GET /api/styles/NAME: an example style."""
        return _file(self._gallery.styles, request, "style")

    async def example(self, request):
        """GET /api/examples/NAME: an example label map, a PNG of class numbers at the page's canvas size."""
        self._check_ready()
        path = self._gallery.maps.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, f"no such example; there are {', '.join(self._gallery.maps) or 'none'}")
        labels, _ = await run_in_threadpool(decode_any_map, path.read_bytes(), *self._canvas(), self._num_classes())
        return Response(png_of(labels), media_type="image/png")

    async def picture(self, request):
        """POST /api/picture: a picture, as a stream of JSON lines, or with `Accept: image/png` as a PNG."""
        self._check_ready()
        number = self._jobs.draw_number()
        async with self._body(request, ("application/json", "image/png")) as (body, kind):
            arguments = await run_in_threadpool(self._paint_arguments, body, kind, dict(request.query_params))
            job = self._jobs.submit(number, "paint", arguments, _session(request))
        if "image/png" in request.headers.get("accept", ""):
            return await self._finished_picture(job, request)
        return StreamingResponse(_lines(job), media_type="application/x-ndjson", headers={"cache-control": "no-store"})

    async def _finished_picture(self, job, request):
        data = None
        async for event in _while_connected(job, request):
            if event["event"] == "result":
                data = event["picture"]
            elif event["event"] in ("error", "cancelled"):
                return JSONResponse({"error": event.get("error", "cancelled: a newer request of the same session")},
                                    500 if event["event"] == "error" else 409)
        if data is None:
            raise ClientDisconnect
        return Response(data, media_type="image/png")

    async def segment(self, request):
        """POST /api/segment: the label map of a photo."""
        self._check_ready()
        number = self._jobs.draw_number()
        async with self._body(request, _PICTURES) as (body, _):
            photo = await run_in_threadpool(decode_photo, body, *self._canvas())
            job = self._jobs.submit(number, "segment", (photo, *self._canvas()), _session(request))
        async for event in _while_connected(job, request):
            if "labels" in event:
                return JSONResponse({"map": _text(await run_in_threadpool(png_of, event["labels"]))})
            if event["event"] in FINAL:
                return JSONResponse({"error": event.get("error", "cancelled")}, 500 if "error" in event else 409)
        raise ClientDisconnect

    async def labels(self, request):
        """POST /api/labels: a label map of any kind as class numbers at the page's canvas size."""
        self._check_ready()
        async with self._body(request, ("image/png",)) as (body, _):
            labels, how = await run_in_threadpool(decode_any_map, body, *self._canvas(), self._num_classes())
            return JSONResponse({"map": _text(await run_in_threadpool(png_of, labels)), "read_as": how})

    def _check_ready(self):
        if self._jobs.status != "ready":
            raise HTTPException(503, self._jobs.detail, {"retry-after": "2"})

    def _canvas(self):
        canvas = self._jobs.model["canvas"]
        return canvas["width"], canvas["height"]

    def _num_classes(self):
        return len(self._jobs.model["classes"])

    def _paint_arguments(self, body, kind, query):
        """Returns labels, style, style labels (or None) and settings of a request, decoded."""
        names = list(self._gallery.styles)
        query.pop("session", None)
        if kind == "application/json":
            if query:
                raise InputError(f"query {next(iter(query))}: with a JSON body the settings stand in the body")
            project = parse_project(body, names)
        else:
            style = query.pop("style", None)
            if style not in names:
                raise InputError(f"query style {style!r}: no such style; expected one of {', '.join(names) or 'none'}; "
                                 f"a photo goes into a JSON body")
            project = Project(body, style, settings_from_dict(_numbers(query)))
        size = self._jobs.model["picture"]
        style, style_map = project.style, project.style_map
        if isinstance(style, str):
            known = self._gallery.style_maps.get(style)
            style_map = style_map or known and known.read_bytes()
            style = self._gallery.styles[style].read_bytes()
        labels = decode_map(project.map, self._num_classes())
        style_labels = style_map and fit_labels(decode_map(style_map, len(CLASSES)), size["width"], size["height"])
        return labels, decode_photo(style, size["width"], size["height"]), style_labels, project.settings

    @contextlib.asynccontextmanager
    async def _body(self, request, kinds):
        """Reads the body within its limits; gives it with its content type. Few are held in memory at a time."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in kinds:
            raise HTTPException(415, f"Content-Type {kind or 'missing'}: expected {' or '.join(kinds)}")
        limit = {"application/json": _BODY_BYTES}.get(kind, PHOTO_BYTES)
        length = request.headers.get("content-length", "0")
        if not length.isdecimal():
            raise HTTPException(400, "Content-Length: expected a number")
        if int(length) > _DRAINED_BYTES:
            raise _too_large(limit)
        if self._reading >= _READING:
            raise Busy
        self._reading += 1
        try:
            try:
                body = await asyncio.wait_for(_read(request, limit), _BODY_SECONDS)
            except asyncio.TimeoutError:
                raise HTTPException(408, f"the body did not arrive within {_BODY_SECONDS} s",
                                    {"connection": "close"}) from None
            yield body, kind
        finally:
            self._reading -= 1


async def _read(request, limit):
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > _DRAINED_BYTES:
            break
        if size <= limit:
            body += chunk
        else:
            body.clear()
    if size > limit:
        raise _too_large(limit)
    return bytes(body)


def _too_large(limit):
    return HTTPException(413, f"the body is larger than {limit / 2**20:.0f} MB, the limit", {"connection": "close"})


def _numbers(query):
    """The settings of a query string: what looks like JSON is, the rest is text."""
    def value(text):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return {key: value(text) for key, text in query.items()}


def _session(request):
    return request.query_params.get("session", "")[:64] or None


async def _lines(job):
    """A job's events as JSON lines; the job is cancelled when the client goes away."""
    try:
        async for event in job:
            picture = event.get("picture")
            yield json.dumps(event if picture is None else {**event, "picture": _text(picture)}) + "\n"
    finally:
        job.cancel()


async def _while_connected(job, request):
    """A job's events until it ends or the client goes away."""
    async def watch():
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watching = asyncio.create_task(watch())
    try:
        async for event in job:
            yield event
    finally:
        watching.cancel()
        job.cancel()


def _text(data):
    return base64.b64encode(data).decode()


def _file(paths, request, what):
    path = paths.get(request.path_params["name"])
    if path is None:
        raise HTTPException(404, f"no such {what}; there are {', '.join(paths) or 'none'}")
    return FileResponse(path)


async def _http_error(request, error):
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _input_error(request, error):
    return JSONResponse({"error": str(error)}, 413 if isinstance(error, TooLarge) else 400)


async def _busy(request, error):
    return JSONResponse({"error": "too many requests are waiting; try again in a moment"}, 429, {"retry-after": "1"})


async def _gone(request, error):
    return Response(status_code=499)
