"""Google's Cloud KMS as far as custody of keys needs it, over Google's own discovery document: every path, parameter
and field of a request and of an answer is checked against it, every token's signature and scope too.

    python google_kms.py PORT KEYRING KEY…

The folder holds `known.json`, a service account that may use the keys; whoever else signs is refused. A version that was
made is generated at its second look.
"""

import base64
import json
import os
import pathlib
import re
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import googleapiclient
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DOCUMENTS = pathlib.Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
DOCUMENT = json.loads((DOCUMENTS / "cloudkms.v1.json").read_text())
SCHEMAS = DOCUMENT["schemas"]
LOCK = threading.Lock()


class Refused(Exception):
    def __init__(self, code, status, message):
        super().__init__(message)
        self.answer = {"error": {"code": code, "status": status, "message": message}}
        self.code = code


def methods(node):
    yield from node.get("methods", {}).values()
    for child in node.get("resources", {}).values():
        yield from methods(child)


def shape(method):
    """The path of a method, with every parameter as its own pattern says."""
    shape = re.escape(method["path"])
    for name, parameter in method.get("parameters", {}).items():
        if parameter["location"] == "path":
            pattern = parameter["pattern"].removeprefix("^").removesuffix("$")
            shape = shape.replace(re.escape("{+" + name + "}"), pattern)
    return re.compile("^/" + shape + "$")


METHODS = [(method, shape(method)) for method in methods(DOCUMENT)]


def check(schema, value, place):
    """Whether a value is what the document says."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"]]
    kind = schema.get("type")
    if kind == "object":
        if not isinstance(value, dict):
            raise Refused(400, "INVALID_ARGUMENT", f"{place}: an object is expected")
        for name, field in value.items():
            if name not in schema.get("properties", {}):
                raise Refused(400, "INVALID_ARGUMENT", f"{place}.{name}: unknown field")
            check(schema["properties"][name], field, f"{place}.{name}")
    elif kind == "array":
        for item in value:
            check(schema["items"], item, place)
    elif kind == "string":
        good = isinstance(value, str) and value in schema.get("enum", [value])
        if good and schema.get("format") == "byte":
            good = base64.b64encode(base64.b64decode(value)).decode() == value
        if not good:
            raise Refused(400, "INVALID_ARGUMENT", f"{place}: not a {schema}")
    elif kind == "boolean" and not isinstance(value, bool):
        raise Refused(400, "INVALID_ARGUMENT", f"{place}: not a boolean")
    elif kind == "integer" and not isinstance(value, int):
        raise Refused(400, "INVALID_ARGUMENT", f"{place}: not a number")


def decoded(part):
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


KNOWN = json.loads(pathlib.Path("known.json").read_text())
PUBLIC = serialization.load_pem_private_key(KNOWN["private_key"].encode(), None).public_key()


def authorise(header, method):
    """A token that the service account signed itself (Google's AIP-4111)."""
    try:
        first, second, signature = (header or "").removeprefix("Bearer ").split(".")
        claims = json.loads(decoded(second))
        algorithm = json.loads(decoded(first))["alg"]
    except ValueError:
        raise Refused(401, "UNAUTHENTICATED", "there is no token")
    scopes = claims.get("scope", "").split()
    lives = claims.get("iat", 0) <= time.time() + 5 and time.time() < claims.get("exp", 0) <= time.time() + 3700
    if algorithm != "RS256" or not lives or not set(scopes) & set(method["scopes"]):
        raise Refused(401, "UNAUTHENTICATED", "the token is not good for this")
    if claims.get("iss") != KNOWN["client_email"]:
        raise Refused(403, "PERMISSION_DENIED", "the caller may not do that")
    try:
        PUBLIC.verify(decoded(signature), f"{first}.{second}".encode(), padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        raise Refused(401, "UNAUTHENTICATED", "the token's signature is wrong")


class Version:
    def __init__(self, name, state):
        self.name, self.state, self.key = name, state, AESGCM.generate_key(256)

    def shown(self):
        return {"name": self.name, "state": self.state, "protectionLevel": "SOFTWARE",
                "algorithm": "GOOGLE_SYMMETRIC_ENCRYPTION"}


class Key:
    def __init__(self, name):
        self.name, self.versions = name, {}
        self.primary = self.make("ENABLED").name

    def make(self, state):
        number = len(self.versions) + 1
        self.versions[number] = Version(f"{self.name}/cryptoKeyVersions/{number}", state)
        return self.versions[number]

    def usable(self, version):
        if version.state != "ENABLED":
            raise Refused(400, "FAILED_PRECONDITION", f"{version.name} is not enabled, its state is {version.state}")
        return version


RING = sys.argv[2]
KEYS = {name: Key(name) for name in (f"{RING}/cryptoKeys/{key}" for key in sys.argv[3:])}


def found(name):
    """The key, and the version where the name has one."""
    key, _, number = name.partition("/cryptoKeyVersions/")
    version = KEYS.get(key) and KEYS[key].versions.get(int(number)) if number else None
    if key not in KEYS or (number and version is None):
        raise Refused(404, "NOT_FOUND", f"{name} not found")
    return KEYS[key], version


def done(method, name, query, body):
    action = method["id"].removeprefix("cloudkms.projects.locations.keyRings.cryptoKeys.")
    key, version = found(name)
    context = base64.b64decode(body.get("additionalAuthenticatedData", ""))
    if action == "encrypt":
        version = key.usable(version or found(key.primary)[1])
        nonce = os.urandom(12)
        sealed = AESGCM(version.key).encrypt(nonce, base64.b64decode(body["plaintext"]), context)
        number = int(version.name.rpartition("/")[2])
        ciphertext = b"\n$" + number.to_bytes(4, "big") + nonce + sealed
        return {"name": version.name, "ciphertext": base64.b64encode(ciphertext).decode(), "protectionLevel": "SOFTWARE"}
    if action == "decrypt":
        ciphertext = base64.b64decode(body["ciphertext"])
        version = key.versions.get(int.from_bytes(ciphertext[2:6], "big"))
        try:
            if version is None:
                raise InvalidTag
            plaintext = AESGCM(key.usable(version).key).decrypt(ciphertext[6:18], ciphertext[18:], context)
        except InvalidTag:
            raise Refused(400, "INVALID_ARGUMENT", "Decryption failed: the ciphertext is invalid.")
        return {"plaintext": base64.b64encode(plaintext).decode(), "usedPrimary": version.name == key.primary}
    if action == "updatePrimaryVersion":
        key.primary = key.usable(found(f"{key.name}/cryptoKeyVersions/{body['cryptoKeyVersionId']}")[1]).name
        return {"name": key.name, "purpose": "ENCRYPT_DECRYPT"}
    if action == "cryptoKeyVersions.create":
        return key.make("PENDING_GENERATION").shown()
    if action == "cryptoKeyVersions.get":
        shown = version.shown()
        if version.state == "PENDING_GENERATION":
            version.state = "ENABLED"
        return shown
    if action == "cryptoKeyVersions.patch":
        if query.get("updateMask") != "state" or version.state not in ("ENABLED", "DISABLED"):
            raise Refused(400, "INVALID_ARGUMENT", "only what is enabled or disabled can be the other")
        version.state = body["state"]
        return version.shown()
    if action == "cryptoKeyVersions.destroy":
        if version.state in ("DESTROYED", "DESTROY_SCHEDULED"):
            raise Refused(400, "FAILED_PRECONDITION", f"{version.name} is destroyed already")
        version.state = "DESTROY_SCHEDULED"
        return version.shown()
    if action == "cryptoKeyVersions.list":
        # Two on a page at the most, whatever was asked for: the service may do so.
        size = min(int(query.get("pageSize", 2)), 2)
        start = int(query.get("pageToken", "page-0").removeprefix("page-"))
        names = sorted(key.versions)
        page = {"cryptoKeyVersions": [key.versions[at].shown() for at in names[start:start + size]],
                "totalSize": len(names)}
        return page | ({"nextPageToken": f"page-{start + size}"} if start + size < len(names) else {})
    raise Refused(501, "UNIMPLEMENTED", action)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def serve(self):
        text = self.rfile.read(int(self.headers.get("content-length") or 0))
        url = urllib.parse.urlsplit(self.path)
        try:
            matching = [m for m, path in METHODS if m["httpMethod"] == self.command and path.match(url.path)]
            if not matching:
                raise Refused(404, "NOT_FOUND", f"no method {self.command} {url.path}")
            [method] = matching
            authorise(self.headers.get("authorization"), method)
            query = dict(urllib.parse.parse_qsl(url.query, strict_parsing=bool(url.query)))
            for name in query:
                if name not in method["parameters"] and name not in DOCUMENT["parameters"]:
                    raise Refused(400, "INVALID_ARGUMENT", f"unknown parameter {name}")
            body = {}
            if "request" in method:
                if self.headers.get("content-type") != "application/json":
                    raise Refused(400, "INVALID_ARGUMENT", "the body is not declared as JSON")
                body = json.loads(text)
                check(method["request"], body, "body")
            elif text:
                raise Refused(400, "INVALID_ARGUMENT", "this method takes no body")
            name = urllib.parse.unquote(url.path).removeprefix("/v1/").rsplit(":", 1)[0]
            name = name.removesuffix("/cryptoKeyVersions")
            with LOCK:
                answer, code = done(method, name, query, body), 200
            check(method["response"], answer, "answer")
        except Refused as refused:
            answer, code = refused.answer, refused.code
        except (ValueError, KeyError) as error:
            answer, code = Refused(400, "INVALID_ARGUMENT", repr(error)).answer, 400
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json; charset=UTF-8")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = serve


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
