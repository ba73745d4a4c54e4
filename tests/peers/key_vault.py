"""Azure Key Vault as far as custody of keys needs it, over the models and requests of Microsoft's own client: every path,
field and algorithm of a request is checked against them. It issues tokens too (`entra.py`).

    python key_vault.py PORT

A token ends after six uses. A key that was deleted stands among the deleted ones at the second look.
"""

import base64
import json
import secrets
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from azure.keyvault.keys._generated import models
from azure.keyvault.keys._generated._operations import _operations as requests
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

from entra import Refused, Tokens

PORT = int(sys.argv[1])
HERE = f"http://127.0.0.1:{PORT}"
API = "7.4"
RESOURCE = "https://vault.azure.net"
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
PSS = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
LOCK = threading.Lock()
TOKENS = Tokens(RESOURCE, 6)
KEYS, DELETED = {}, {}


def encoded(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(text):
    if "=" in text:
        raise Refused(400, "BadParameter", "base64url without padding is expected")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def checked(model, body, **enums):
    """A body that has the fields of a model, and no others, with values that it knows."""
    fields = {field._rest_name for field in model(body)._attr_to_rest_field.values()}
    for name, value in body.items():
        if name not in fields:
            raise Refused(400, "BadParameter", f"unknown field {name}")
        known = enums.get(name)
        for one in value if isinstance(value, list) else [value]:
            if known and one not in {item.value for item in known}:
                raise Refused(400, "BadParameter", f"{name} has a value that is not known")
    return body


class Key:
    def __init__(self, name, size, operations):
        self.name, self.version, self.operations = name, secrets.token_hex(16), operations
        self.secret, self.made = rsa.generate_private_key(65537, size), int(time.time())
        self.looks, self.enabled = 0, True

    def kid(self):
        return f"{HERE}/keys/{self.name}/{self.version}"

    def bundle(self):
        public = self.secret.public_key().public_numbers()
        number = lambda value: encoded(value.to_bytes((value.bit_length() + 7) // 8, "big"))
        return {"key": {"kid": self.kid(), "kty": "RSA", "key_ops": self.operations, "n": number(public.n),
                        "e": number(public.e)},
                "attributes": {"enabled": self.enabled, "created": self.made, "updated": self.made,
                               "recoveryLevel": "Recoverable+Purgeable"}}

    def item(self):
        return {"kid": f"{HERE}/keys/{self.name}", "attributes": self.bundle()["attributes"]}

    def deleted(self):
        return {"recoveryId": f"{HERE}/deletedkeys/{self.name}", "deletedDate": self.made,
                "scheduledPurgeDate": self.made + 90 * 86400}

    def allow(self, operation):
        if not self.enabled:
            raise Refused(403, "Forbidden", f"Operation {operation} is not allowed on a disabled key.")
        if operation not in self.operations:
            raise Refused(403, "Forbidden", f"operation {operation} is not permitted on this key")


def key_of(name, version=""):
    key = KEYS.get(name)
    if key is None or version not in ("", key.version):
        raise Refused(404, "KeyNotFound", f"A key with (name/id) {name}/{version} was not found in this key vault.")
    return key


def listed(items, query):
    # One on a page, so that there are pages.
    at = int(query.get("$skiptoken", "0"))
    path = "deletedkeys" if items and "recoveryId" in items[0] else "keys"
    more = f"{HERE}/{path}?api-version={API}&$skiptoken={at + 1}" if at + 1 < len(items) else None
    return {"value": items[at:at + 1], "nextLink": more}


def algorithm(body, name):
    if body.get("alg") != name:
        raise Refused(400, "BadParameter", "this key cannot do that")


def vault(method, path, query, body):
    def meant(request):
        url = urllib.parse.urlsplit(request.url)
        return request.method == method and urllib.parse.unquote(url.path) == path

    parts = path.strip("/").split("/")
    name, version = (parts + ["", ""])[1:3]
    if meant(requests.build_key_vault_get_keys_request()):
        return listed([key.item() for _, key in sorted(KEYS.items())], query)
    if meant(requests.build_key_vault_get_deleted_keys_request()):
        return listed([key.item() | key.deleted() for _, key in sorted(DELETED.items())], query)
    if not name or not all(one.isalnum() or one == "-" for one in name):
        raise Refused(404, "NotFound", f"there is no {method} {path}")
    if meant(requests.build_key_vault_create_key_request(name)):
        checked(models.KeyCreateParameters, body, kty=models.JsonWebKeyType, key_ops=models.JsonWebKeyOperation)
        if body["kty"] != "RSA" or body["key_size"] not in (2048, 3072, 4096):
            raise Refused(400, "BadParameter", "this peer makes RSA keys")
        if name in DELETED:
            raise Refused(409, "Conflict", f"Key {name} is currently in a deleted but recoverable state.")
        if name in KEYS:
            raise Refused(409, "Conflict", "a new version would be made, which nobody here wants")
        KEYS[name] = Key(name, body["key_size"], body["key_ops"])
        return KEYS[name].bundle()
    if meant(requests.build_key_vault_get_key_request(name, "")) or path == f"/keys/{name}" and method == "GET":
        return key_of(name).bundle()
    if meant(requests.build_key_vault_update_key_request(name, version)):
        checked(models.KeyUpdateParameters, body)
        key_of(name, version).enabled = body["attributes"]["enabled"]
        return key_of(name, version).bundle()
    if meant(requests.build_key_vault_delete_key_request(name)):
        key = DELETED[name] = key_of(name)
        del KEYS[name]
        return key.bundle() | key.deleted()
    if meant(requests.build_key_vault_get_deleted_key_request(name)):
        key = DELETED.get(name)
        if key is None:
            raise Refused(404, "KeyNotFound", f"Deleted Key not found: {name}")
        key.looks += 1
        if key.looks < 2:
            raise Refused(404, "KeyNotFound", f"Deleted Key not found: {name}")
        return key.bundle() | key.deleted()
    if meant(requests.build_key_vault_purge_deleted_key_request(name)):
        if name not in DELETED:
            raise Refused(404, "KeyNotFound", f"Deleted Key not found: {name}")
        if DELETED[name].looks < 2:
            raise Refused(409, "Conflict", f"Key {name} is currently being deleted.")
        del DELETED[name]
        return None
    if meant(requests.build_key_vault_wrap_key_request(name, version)):
        checked(models.KeyOperationsParameters, body, alg=models.JsonWebKeyEncryptionAlgorithm)
        key = key_of(name, version)
        key.allow("wrapKey")
        algorithm(body, "RSA-OAEP-256")
        return {"kid": key.kid(), "value": encoded(key.secret.public_key().encrypt(decoded(body["value"]), OAEP))}
    if meant(requests.build_key_vault_unwrap_key_request(name, version)):
        checked(models.KeyOperationsParameters, body, alg=models.JsonWebKeyEncryptionAlgorithm)
        key = key_of(name, version)
        key.allow("unwrapKey")
        algorithm(body, "RSA-OAEP-256")
        return {"kid": key.kid(), "value": encoded(key.secret.decrypt(decoded(body["value"]), OAEP))}
    if meant(requests.build_key_vault_sign_request(name, version)):
        checked(models.KeySignParameters, body, alg=models.JsonWebKeySignatureAlgorithm)
        key = key_of(name, version)
        key.allow("sign")
        algorithm(body, "PS256")
        signature = key.secret.sign(decoded(body["value"]), PSS, utils.Prehashed(hashes.SHA256()))
        return {"kid": key.kid(), "value": encoded(signature)}
    if meant(requests.build_key_vault_verify_request(name, version)):
        checked(models.KeyVerifyParameters, body, alg=models.JsonWebKeySignatureAlgorithm)
        key = key_of(name, version)
        key.allow("verify")
        algorithm(body, "PS256")
        try:
            key.secret.public_key().verify(
                decoded(body["value"]), decoded(body["digest"]), PSS, utils.Prehashed(hashes.SHA256()))
        except InvalidSignature:
            return {"value": False}
        return {"value": True}
    raise Refused(404, "NotFound", f"there is no {method} {path}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answered(self, text):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        form = dict(urllib.parse.parse_qsl(text.decode())) if "form" in (self.headers.get("content-type") or "") else {}
        if token := TOKENS.asked(self.command, url.path, query, form, self.headers):
            return token
        TOKENS.use(self.headers)
        if query.pop("api-version", None) != API:
            raise Refused(400, "BadParameter", "the version of the interface is missing or unknown")
        if set(query) - {"maxresults", "$skiptoken"}:
            raise Refused(400, "BadParameter", "unknown parameter")
        if text and self.headers.get("content-type") != "application/json":
            raise Refused(415, "UnsupportedMediaType", "the body is not declared as JSON")
        return vault(self.command, urllib.parse.unquote(url.path), query, json.loads(text) if text else {})

    def serve(self):
        text = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            with LOCK:
                answer, status = self.answered(text), 200
        except Refused as refused:
            answer, status = refused.answer, refused.status
        except (ValueError, KeyError) as error:
            answer, status = Refused(400, "BadParameter", repr(error)).answer, 400
        data = b"" if answer is None else json.dumps(answer).encode()
        self.send_response(204 if answer is None else status)
        if data:
            self.send_header("content-type", "application/json; charset=utf-8")
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = serve


ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
