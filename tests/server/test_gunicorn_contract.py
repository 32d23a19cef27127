"""Contract with Gunicorn and gevent: app/server/README.md lists the names in use; the installed releases have them."""

import ast
import importlib
import inspect
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gunicorn.config import Config

from tests.support import ROOT

PAGE = (ROOT / "app/server/README.md").read_text(encoding="utf-8")
USERS = [*ROOT.glob("app/server/*.py"), ROOT / "app/logs.py", ROOT / "gunicorn.conf.py"]
# Names without parentheses, or with the first parameters that we pass or take, without self.
NAMES = """
gevent.event.AsyncResult.get() gevent.event.AsyncResult.set(value) gevent.event.Event.set()
gevent.event.Event.wait(timeout)
gevent.get_hub() gevent.libev.corecext.async.send gevent.libev.corecext.async.start gevent.libev.corecext.loop.async_
gevent.lock.Semaphore.__enter__ gevent.lock.Semaphore.__exit__
gevent.monkey.get_original(mod_name,item_name) gevent.monkey.patch_all gevent.pool.Pool(size)
gevent.server.StreamServer(listener,handle) gevent.server.StreamServer.close() gevent.server.StreamServer.do_handle
gevent.server.StreamServer.do_read() gevent.server.StreamServer.max_accept gevent.server.StreamServer.start()
gevent.server.StreamServer.stop_accepting() gevent.sleep(seconds)
gevent.hub.Hub.cancel_wait(watcher,error) gevent.socket.socket._read_event
gevent.socket.socket.recv gevent.socket.socket.sendall
gevent.socket.socket.settimeout gevent.socket.socket.shutdown gevent.spawn gevent.spawn_later
gunicorn.SERVER gunicorn.app.base.BaseApplication.wsgi() gunicorn.arbiter.Arbiter.WORKER_BOOT_ERROR
gunicorn.arbiter.Arbiter.app
gunicorn.arbiter.GUNICORN_FD gunicorn.config.Config.bind gunicorn.config.Config.child_exit
gunicorn.config.Config.control_socket_disable gunicorn.config.Config.forwarded_allow_ips
gunicorn.config.Config.forwarder_headers gunicorn.config.Config.secure_scheme_headers
gunicorn.config.Config.graceful_timeout gunicorn.config.Config.http_parser gunicorn.config.Config.keepalive
gunicorn.config.Config.limit_request_field_size gunicorn.config.Config.limit_request_fields
gunicorn.config.Config.limit_request_line gunicorn.config.Config.logger_class gunicorn.config.Config.loglevel
gunicorn.config.Config.on_starting gunicorn.config.Config.post_worker_init gunicorn.config.Config.pre_fork
gunicorn.config.Config.preload_app gunicorn.config.Config.sendfile gunicorn.config.Config.timeout
gunicorn.config.Config.settings gunicorn.config.Config.when_ready
gunicorn.config.Config.worker_class gunicorn.config.Config.worker_connections
gunicorn.config.Config.worker_tmp_dir gunicorn.config.Config.workers gunicorn.config.Config.wsgi_app
gunicorn.glogging.Logger.error_log gunicorn.glogging.Logger.setup(cfg)
gunicorn.http.errors.ExpectationFailed gunicorn.http.errors.InvalidResponseHeader
gunicorn.http.errors.LimitRequestHeaders gunicorn.http.errors.LimitRequestLine gunicorn.http.errors.NoMoreData
gunicorn.http.errors.ParseException gunicorn.http.errors.UnsupportedTransferCoding
gunicorn.http.get_parser(cfg,source,source_addr) gunicorn.http.message.RFC9112_TARGET_INVALID
gunicorn.http.message.Request._expected_100_continue gunicorn.http.message.Request.force_close()
gunicorn.http.message.Request.headers gunicorn.http.message.Request.method gunicorn.http.message.Request.path
gunicorn.http.message.Request.should_close() gunicorn.http.message.Request.version
gunicorn.http.parser.Parser.__next__() gunicorn.http.parser.Parser.finish_body() gunicorn.http.parser.Parser.unreader
gunicorn.http.unreader.SocketUnreader.sock gunicorn.http.unreader.Unreader.take_buffered()
gunicorn.http.unreader.Unreader.unread(data)
gunicorn.http.wsgi.Response(req,sock,cfg) gunicorn.http.wsgi.Response._emit_body(data)
gunicorn.http.wsgi.Response.chunked gunicorn.http.wsgi.Response.close() gunicorn.http.wsgi.Response.default_headers()
gunicorn.http.wsgi.Response.force_close() gunicorn.http.wsgi.Response.headers
gunicorn.http.wsgi.Response.headers_sent gunicorn.http.wsgi.Response.send_headers()
gunicorn.http.wsgi.Response.sent gunicorn.http.wsgi.Response.should_close() gunicorn.http.wsgi.Response.sock
gunicorn.http.wsgi.Response.start_response(status,headers) gunicorn.http.wsgi.Response.status_code
gunicorn.http.wsgi.Response.write(arg) gunicorn.http.wsgi.create(req,sock,client,server,cfg,response_class)
gunicorn.util.http_date(timestamp) gunicorn.util.write_chunk(sock,data)
gunicorn.workers.ggevent.GeventWorker.alive gunicorn.workers.ggevent.GeventWorker.booted
gunicorn.workers.ggevent.GeventWorker.cfg gunicorn.workers.ggevent.GeventWorker.handle(listener,client,addr)
gunicorn.workers.ggevent.GeventWorker.handle_exit(sig,frame) gunicorn.workers.ggevent.GeventWorker.log
gunicorn.workers.ggevent.GeventWorker.notify() gunicorn.workers.ggevent.GeventWorker.pid
gunicorn.workers.ggevent.GeventWorker.run() gunicorn.workers.ggevent.GeventWorker.sockets
gunicorn.workers.ggevent.GeventWorker.worker_connections gunicorn.workers.ggevent.GeventWorker.wsgi
""".split()


def test_contract() -> None:
    """Page, list and code agree, and the installed releases have every name, with its parameters."""
    listed = re.findall(r"^\| `((?:gunicorn|gevent)\.[^`]+)` \|", PAGE, re.M)
    assert sorted(name.replace(", ", ",") for name in listed) == sorted(NAMES)
    for package in ("gunicorn", "gevent"):
        assert f"{package} {version(package)}" in PAGE
    assert [name for name in NAMES if not is_there(name)] == []
    bare = [name.partition("(")[0] for name in NAMES]
    for path in USERS:
        for used in uses(path):
            assert any(name == used or name.startswith(f"{used}.") for name in bare), (path.name, used)


def is_there(name: str) -> bool:
    """Return whether the installed package has this name, with these first parameters."""
    dotted, has_parameters, parameters = name.rstrip(")").partition("(")
    owner, last = resolved(dotted)
    if not hasattr(owner, last):
        return not has_parameters and is_set(owner, last)
    if not has_parameters:
        return True
    found = [parameter for parameter in inspect.signature(getattr(owner, last)).parameters if parameter != "self"]
    expected = [parameter for parameter in parameters.split(",") if parameter]
    return found[: len(expected)] == expected


def resolved(dotted: str) -> tuple[Any, str]:
    """Return the object that has the last part of a name as its attribute, and that part."""
    *parts, last = dotted.split(".")
    if parts[-1] == "Config":
        return Config(), last
    for length in range(len(parts), 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            owner = getattr(owner, part)
        return owner, last
    raise AssertionError(dotted)


def is_set(owner: Any, name: str) -> bool:
    """Return whether a class sets the name on its instances, or a module's source has it as a string."""
    if inspect.ismodule(owner):
        return f"'{name}'" in inspect.getsource(owner).replace('"', "'")
    if not inspect.isclass(owner):  # Config, whose settings are all that it has
        return False
    sources = [inspect.getsource(base) for base in owner.__mro__ if base is not object]
    return any(re.search(rf"\bself\.{name}\b[^=\n]*=[^=]", source) for source in sources)


def uses(path: Path) -> set[str]:
    """Return the names of the two packages that a file imports, or spells out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"[\w.]+", name := ast.unparse(node)):
            found.add(name.replace("monkey.", "gevent.monkey.") if name.startswith("monkey.") else name)
    return {name for name in found if name.startswith(("gunicorn.", "gevent."))}
