"""An object store for tests: folders served as Google Cloud Storage does.

Objects are read, written, copied, deleted and listed by the JSON API, and read
by their plain addresses. Two ways in:

- Plain HTTP, for clients that can be told an address.
- As an HTTPS proxy that answers itself in the place of every host, for those
  that cannot; its certificate is made for the occasion.

Every request must bear the token, so that a forgotten one shows. A bucket is a
folder, and an object a file in it, there only when all of it has come. The
empty objects whose names end in '/', which stand for folders, are remembered
alone; a folder on disk is nothing to the store. Nothing is renamed: as there, a
client has to copy and delete.
"""

import contextlib
import dataclasses
import http.server
import itertools
import json
import os
import pathlib
import re
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

TOKEN = 'of-these-tests-alone'
_HOSTS = ('www.googleapis.com', 'storage.googleapis.com')
_API, _UPLOAD = ['storage', 'v1', 'b'], ['upload', 'storage', 'v1', 'b']
_PAGE = 1000  # Objects a page, at most.


@dataclasses.dataclass
class _Session:
  """A resumable upload: what has come of it, and what it became."""

  bucket: str
  name: str
  file: pathlib.Path
  came: int = 0
  made: dict | None = None


class Server(http.server.ThreadingHTTPServer):
  """Serves the folders of `root`, each as a bucket; keeps what was asked.

  Attributes:
    asked: the addresses of all requests.
    trouble_every: every k-th request is answered 503 once; of these every
      second one is done before, as if its answer had been lost. 0: no trouble.
    troubles: how many requests were answered so.
    refused: requests ('PUT bucket/name') in which this is found get 403.
    before: called with 'bucket/name' before an object is made; where it
      returns True, it is not.
    page: objects a page of a listing, at most.
  """

  daemon_threads = True
  request_queue_size = 64

  def __init__(self, root: pathlib.Path, folder: pathlib.Path):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.root = root
    self.certificate = folder / 'certificate.pem'
    self.asked: list[str] = []
    self.trouble_every = 0
    self.troubles = 0
    self.refused: str | None = None
    self.before: Callable[[str], bool] = lambda path: False
    self.page = _PAGE
    self._folder = folder  # Of what has not come whole.
    self._lock = threading.RLock()
    self._numbers = itertools.count(2)
    self._requests = 0
    self._troubled: set[str] = set()  # That are to go well next time.
    self._generations: dict[str, int] = {}
    self._markers: set[str] = set()
    self._sessions: dict[str, _Session] = {}

  def environment(self) -> dict[str, str]:
    """Variables that send a process's requests here."""
    address = f'http://127.0.0.1:{self.server_address[1]}'
    return {
      # Of TensorFlow, whose file system the paths are of.
      'https_proxy': address,
      'no_proxy': '127.0.0.1',
      'CURL_CA_BUNDLE': str(self.certificate),
      'GCS_RETRY_CONFIG_INIT_DELAY_TIME_US': '1000',
      'GCS_RETRY_CONFIG_MAX_RETRIES': '3',
      'NO_GCE_CHECK': 'true',
      # Of tensorstore, which reads and writes the arrays.
      'TENSORSTORE_GCS_HTTP_URL': address,
      # Of both.
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': TOKEN,
    }

  # -- What the store does ----------------------------------------------------

  def trouble(self, request: str) -> str | None:
    """Whether a request goes wrong: 'before' or 'after' it is done."""
    with self._lock:
      if request in self._troubled:
        self._troubled.remove(request)
        return None
      self._requests += bool(self.trouble_every)
      if not self.trouble_every or self._requests % self.trouble_every:
        return None
      self._troubled.add(request)
      self.troubles += 1
      return 'before' if self.troubles % 2 else 'after'

  def file(self, bucket: str, name: str) -> pathlib.Path:
    """Where an object lies."""
    return self.root / bucket / name

  def about(self, bucket: str, name: str) -> dict[str, str] | None:
    """What the store says of an object; None where there is none."""
    path = f'{bucket}/{name}'
    if name.endswith('/'):
      if path not in self._markers:
        return None
      size, changed = 0, 0.0
    else:
      try:
        stat = self.file(bucket, name).stat()
      except (FileNotFoundError, NotADirectoryError):
        return None
      if self.file(bucket, name).is_dir():
        return None
      size, changed = stat.st_size, stat.st_mtime
    when = time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(changed))
    return {
      'kind': 'storage#object',
      'bucket': bucket,
      'name': name,
      'size': str(size),
      'generation': str(self._generations.get(path, 1)),
      'metageneration': '1',
      'updated': when,
      'timeCreated': when,
    }

  def make(
    self, bucket: str, name: str, came: pathlib.Path, query: dict[str, str]
  ) -> tuple[int, dict]:
    """Makes an object of a file that has come; status and what it is now."""
    path = f'{bucket}/{name}'
    if self.before(path):
      return 503, {}
    with self._lock:
      if not self._as_asked(bucket, name, query):
        return 412, {}
      self._generations[path] = next(self._numbers)
      if name.endswith('/'):
        self._markers.add(path)
        came.unlink()
      else:
        target = self.file(bucket, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(came, target)
      return 200, self.about(bucket, name)

  def delete(self, bucket: str, name: str, query: dict[str, str]) -> int:
    """Deletes an object; the status."""
    with self._lock:
      if self.about(bucket, name) is None:
        return 404
      if not self._as_asked(bucket, name, query):
        return 412
      self._generations.pop(f'{bucket}/{name}', None)
      if name.endswith('/'):
        self._markers.remove(f'{bucket}/{name}')
        return 204
      file = self.file(bucket, name)
      file.unlink()
      for folder in file.parents:  # So that the disk looks as the store does.
        if folder == self.root / bucket or any(folder.iterdir()):
          break
        folder.rmdir()
      return 204

  def _as_asked(self, bucket: str, name: str, query: dict[str, str]) -> bool:
    about = self.about(bucket, name)
    generation = about['generation'] if about else '0'
    return (
      query.get('ifGenerationMatch', generation) == generation
      and query.get('ifGenerationNotMatch') != generation
    )

  def listed(self, bucket: str, query: dict[str, str]) -> dict:
    """A page of the objects and, with a delimiter, the folders below."""
    prefix, end = query.get('prefix', ''), query.get('delimiter')
    first, beyond = query.get('startOffset', ''), query.get('endOffset')
    root = self.root / bucket
    with self._lock:
      names = {
        path.removeprefix(f'{bucket}/')
        for path in self._markers
        if path.startswith(f'{bucket}/')
      }
      for folder, _, files in os.walk(root):
        inner = os.path.relpath(folder, root)
        names.update(
          name if inner == '.' else f'{inner}/{name}' for name in files
        )
    entries: dict[str, bool] = {}  # Name → whether it is a folder.
    for name in sorted(names):
      if not name.startswith(prefix) or name < first:
        continue
      if beyond is not None and name >= beyond:
        continue
      inner, found, _ = name.removeprefix(prefix).partition(end or '\0')
      entries[f'{prefix}{inner}{end}' if found else name] = bool(found)
    after = query.get('pageToken', '')
    left = [name for name in sorted(entries) if name > after]
    size = min(int(query.get('maxResults', self.page)), self.page)
    page = left[:size]
    found = [self.about(bucket, name) for name in page if not entries[name]]
    out = {
      'kind': 'storage#objects',
      'items': [about for about in found if about],
      'prefixes': [name for name in page if entries[name]],
    }
    return out | ({'nextPageToken': page[-1]} if len(left) > size else {})

  def incoming(self) -> pathlib.Path:
    """A place for what is to come."""
    return self._folder / f'incoming-{next(self._numbers)}'

  def open_session(self, bucket: str, name: str) -> str:
    """Begins a resumable upload; its name."""
    session = f'session-{next(self._numbers)}'
    self._sessions[session] = _Session(bucket, name, self.incoming())
    self._sessions[session].file.touch()
    return session

  def session(self, name: str) -> _Session | None:
    """A resumable upload."""
    return self._sessions.get(name)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def do_CONNECT(self):
    self.send_response(200)
    self.end_headers()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self.server.certificate)
    self.connection = context.wrap_socket(self.connection, server_side=True)
    self.rfile = self.connection.makefile('rb')
    self.wfile = self.connection.makefile('wb', buffering=0)
    self.close_connection = False

  def finish(self):
    super().finish()
    self.connection.close()  # The server knows of the one within TLS nothing.

  def handle(self):
    # Clients that are killed leave in the midst of a sentence.
    with contextlib.suppress(ConnectionError, ssl.SSLError):
      super().handle()

  def do_GET(self):
    self._begin(self._get)

  def do_DELETE(self):
    self._begin(self._delete)

  def do_POST(self):
    self._begin(self._post)

  def do_PUT(self):
    self._begin(self._put)

  def _begin(self, work) -> None:
    """Takes all of a request in, and answers it or fails to."""
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    parts = [urllib.parse.unquote(part) for part in url.path.split('/')[1:]]
    came = self._body()
    self._lost = False
    try:
      self.server.asked.append(urllib.parse.unquote(self.path))
      if self.headers.get('Authorization') != f'Bearer {TOKEN}':
        return self._answer(401, b'{}')
      refused = self.server.refused
      address = urllib.parse.unquote(self.path)
      if refused and re.search(refused, f'{self.command} {address}'):
        return self._answer(403, b'{}')
      # What tensorstore adds to a request is never the same.
      same = re.sub(r'&tensorstore=\w+', '', self.path)
      before = next(n for n in (_UPLOAD, _API, []) if parts[: len(n)] == n)
      if not (self.server.root / parts[len(before)]).is_dir():
        return self._answer(404, b'{}')  # No such bucket.
      trouble = self.server.trouble(f'{self.command} {same}')
      if trouble == 'before':
        return self._answer(503, b'{}')
      self._lost = trouble == 'after'
      work(parts, query, came)
    finally:
      came.unlink(missing_ok=True)

  def _body(self) -> pathlib.Path:
    """What came with a request, as a file."""
    came = self.server.incoming()
    with open(came, 'wb') as file:
      if self.headers.get('Transfer-Encoding') == 'chunked':
        while size := int(self.rfile.readline().split(b';')[0], 16):
          file.write(self.rfile.read(size))
          self.rfile.readline()
        self.rfile.readline()
      else:
        file.write(self.rfile.read(int(self.headers.get('Content-Length', 0))))
    return came

  def _get(self, parts, query, came) -> None:
    del came
    if parts[:3] != _API:
      # An object by its own address, /BUCKET/OBJECT.
      return self._content(parts[0], '/'.join(parts[1:]), query)
    bucket, name = parts[3], '/'.join(parts[5:])
    if len(parts) == 4:
      return self._json({'name': bucket})
    if not name:
      return self._json(self.server.listed(bucket, query))
    if query.get('alt') == 'media':
      return self._content(bucket, name, query)
    return self._json(self.server.about(bucket, name))

  def _delete(self, parts, query, came) -> None:
    del came
    bucket, name = parts[3], '/'.join(parts[5:])
    return self._answer(self.server.delete(bucket, name, query), b'')

  def _post(self, parts, query, came) -> None:
    if parts[:3] == _API:
      return self._copy(parts)
    bucket, name = parts[4], query['name']
    if query['uploadType'] == 'media':
      status, about = self.server.make(bucket, name, came, query)
      return self._json(about, status)
    assert query['uploadType'] == 'resumable', query
    session = self.server.open_session(bucket, name)
    where = f'https://{_HOSTS[0]}/{"/".join(_UPLOAD)}/{bucket}/o?upload_id='
    return self._answer(200, b'', {'Location': f'{where}{session}'})

  def _copy(self, parts) -> None:
    at = parts.index('rewriteTo')
    bucket, name = parts[3], '/'.join(parts[5:at])
    about = self.server.about(bucket, name)
    if about is None:
      return self._json(None)
    copy = self.server.incoming()
    marker = name.endswith('/')
    copy.write_bytes(
      b'' if marker else self.server.file(bucket, name).read_bytes()
    )
    to = (parts[at + 2], '/'.join(parts[at + 4 :]))
    status, made = self.server.make(*to, copy, {})
    self._json({'done': True, 'resource': made}, status)

  def _put(self, parts, query, came) -> None:
    """A part of a resumable upload, or the question how far it is."""
    del parts
    session = self.server.session(query['upload_id'])
    if session is None:
      return self._json(None)
    if session.made is not None:
      return self._json(session.made)
    given = self.headers.get('Content-Range', '')
    match = re.fullmatch(r'bytes (?:\*|(\d+)-(\d+))/(\d+)', given)
    total = int(match[3]) if match else came.stat().st_size
    if match is None or match[1] is not None:
      if match and int(match[1]) != session.came:
        return self._answer(400, b'{}')
      with open(session.file, 'ab') as file:
        file.write(came.read_bytes())
      session.came = session.file.stat().st_size
    if session.came < total:
      held = {'Range': f'bytes=0-{session.came - 1}'} if session.came else {}
      return self._answer(308, b'', held)
    status, about = self.server.make(
      session.bucket, session.name, session.file, {}
    )
    if status == 200:
      session.made = about
    return self._json(about, status)

  def _content(self, bucket: str, name: str, query: dict[str, str]) -> None:
    about = self.server.about(bucket, name)
    if about is None:
      return self._answer(404, b'')
    generation = about['generation']
    if query.get('ifGenerationNotMatch') == generation:
      return self._answer(304, b'')
    if query.get('ifGenerationMatch', generation) != generation:
      return self._answer(412, b'')
    try:
      data = self.server.file(bucket, name).read_bytes()
    except OSError:  # A folder's, or it went in this moment.
      data = b''
    status, extra = 200, {}
    wanted = self.headers.get('Range')
    if wanted:
      first, _, last = wanted.removeprefix('bytes=').partition('-')
      if not first:  # The last bytes.
        first, last = str(max(0, len(data) - int(last))), ''
      if int(first) >= len(data):
        return self._answer(416, b'')
      end = min(int(last or len(data)), len(data) - 1)
      extra['Content-Range'] = f'bytes {first}-{end}/{len(data)}'
      data, status = data[int(first) : end + 1], 206
    headers = {'x-goog-generation': generation} | extra
    return self._answer(status, data, headers)

  def _json(self, value: dict | None, status: int = 200) -> None:
    if value is None:
      return self._answer(404, b'{}')
    return self._answer(status, json.dumps(value).encode())

  def _answer(self, status, data, headers=None) -> None:
    if self._lost:
      status, data, headers = 503, b'{}', None
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    if status not in (204, 304):
      self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    if status not in (204, 304):
      self.wfile.write(data)

  def log_message(self, *_):
    pass


@contextlib.contextmanager
def serving(root: pathlib.Path, folder: pathlib.Path) -> Iterator[Server]:
  """Serves `root` within; `folder` is for what the server needs itself."""
  certificate = folder / 'certificate.pem'
  names = ','.join(f'DNS:{host}' for host in _HOSTS)
  subprocess.run(
    [
      *('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes'),
      *('-days', '2', '-subj', '/CN=rest_jax test'),
      *('-addext', f'subjectAltName={names}'),
      *('-keyout', str(folder / 'key.pem'), '-out', str(certificate)),
    ],
    check=True,
    capture_output=True,
  )
  with open(certificate, 'a') as file:
    file.write((folder / 'key.pem').read_text())
  os.chmod(certificate, 0o600)
  server = Server(root, folder)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
