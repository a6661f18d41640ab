"""An object store for tests: folders served as Google Cloud Storage does.

Reading alone, by the JSON API and the plain addresses of objects. Two ways in:

- Plain HTTP, for clients that can be told an address.
- As an HTTPS proxy that answers itself in the place of every host, for those
  that cannot; its certificate is made for the occasion.

Every request must bear the token, so that a forgotten one shows.
"""

import contextlib
import http.server
import json
import os
import pathlib
import ssl
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator

TOKEN = 'of-these-tests-alone'
_HOSTS = ('www.googleapis.com', 'storage.googleapis.com')
_UPDATED = '2026-01-01T00:00:00.000Z'


class Server(http.server.ThreadingHTTPServer):
  """Serves the folders of `root`, each as a bucket; keeps what was asked."""

  daemon_threads = True

  def __init__(self, root: pathlib.Path, certificate: pathlib.Path):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.root = root
    self.certificate = certificate
    self.asked: list[str] = []

  def environment(self) -> dict[str, str]:
    """Variables that send a process's requests here."""
    address = f'http://127.0.0.1:{self.server_address[1]}'
    return {
      # Of TensorFlow, whose file system the paths are of.
      'https_proxy': address,
      'no_proxy': '127.0.0.1',
      'CURL_CA_BUNDLE': str(self.certificate),
      'GCS_RETRY_CONFIG_MAX_RETRIES': '1',
      'NO_GCE_CHECK': 'true',
      # Of tensorstore, which reads the arrays.
      'TENSORSTORE_GCS_HTTP_URL': address,
      # Of both.
      'GOOGLE_AUTH_TOKEN_FOR_TESTING': TOKEN,
    }


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

  def do_GET(self):
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    parts = url.path.split('/')
    self.server.asked.append(urllib.parse.unquote(self.path))
    if self.headers.get('Authorization') != f'Bearer {TOKEN}':
      return self._answer(401, b'{}')
    if parts[1:4] != ['storage', 'v1', 'b']:
      # An object by its own address, /BUCKET/OBJECT.
      return self._content(urllib.parse.unquote(url.path[1:]))
    bucket = parts[4]
    if len(parts) == 5:
      there = (self.server.root / bucket).is_dir()
      return self._json({'name': bucket} if there else None)
    name = urllib.parse.unquote('/'.join(parts[6:]))
    if not name:
      return self._json(self._listed(bucket, query))
    if query.get('alt') == 'media':
      return self._content(f'{bucket}/{name}')
    file = self.server.root / bucket / name
    there = file.is_file() and not name.endswith('/')
    return self._json(_about(bucket, name, file) if there else None)

  def _listed(self, bucket: str, query: dict[str, str]) -> dict:
    """The objects and, with a delimiter, the folders below a prefix."""
    prefix, end = query.get('prefix', ''), query.get('delimiter')
    root = self.server.root / bucket
    items, folders = [], set()
    for file in sorted(root.rglob('*')):
      name = str(file.relative_to(root))
      if not file.is_file() or not name.startswith(prefix):
        continue
      inner, found, _ = name.removeprefix(prefix).partition(end or '\0')
      if found:
        folders.add(f'{prefix}{inner}{end}')
      else:
        items.append(_about(bucket, name, file))
    limit = int(query.get('maxResults', 1000))
    out = {'kind': 'storage#objects', 'items': items[:limit]}
    return out | ({'prefixes': sorted(folders)} if folders else {})

  def _content(self, path: str) -> None:
    file = self.server.root / path
    if not file.is_file():
      return self._answer(404, b'')
    data, status, extra = file.read_bytes(), 200, {}
    wanted = self.headers.get('Range')
    if wanted:
      first, _, last = wanted.removeprefix('bytes=').partition('-')
      if int(first) >= len(data):
        return self._answer(416, b'')
      end = min(int(last or len(data)), len(data) - 1)
      extra['Content-Range'] = f'bytes {first}-{end}/{len(data)}'
      data, status = data[int(first) : end + 1], 206
    return self._answer(status, data, {'x-goog-generation': '1'} | extra)

  def _json(self, value: dict | None) -> None:
    if value is None:
      return self._answer(404, b'{}')
    return self._answer(200, json.dumps(value).encode())

  def _answer(self, status, data, headers=None) -> None:
    self.send_response(status)
    for name, value in (headers or {}).items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *_):
    pass


def _about(bucket: str, name: str, file: pathlib.Path) -> dict[str, str]:
  return {
    'kind': 'storage#object',
    'bucket': bucket,
    'name': name,
    'size': str(file.stat().st_size),
    'generation': '1',
    'metageneration': '1',
    'updated': _UPDATED,
    'timeCreated': _UPDATED,
  }


@contextlib.contextmanager
def serving(root: pathlib.Path, folder: pathlib.Path) -> Iterator[Server]:
  """Serves `root` within; `folder` is for the certificate."""
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
  server = Server(root, certificate)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
