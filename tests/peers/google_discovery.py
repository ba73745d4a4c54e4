"""What peers of Google's services have in common: a service's own discovery document, against which every path,
parameter and field of a request and of an answer is checked, and the check of a token's signature and scope.

The folder holds `known.json`, a service account that may do everything; whoever else signs is refused.
"""

import base64
import json
import pathlib
import re
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import googleapiclient
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding

DOCUMENTS = pathlib.Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
DURATION = re.compile(r"^\d+(\.\d+)?s$")
NUMBER = re.compile(r"^-?\d+$")


class Refused(Exception):
    def __init__(self, code, status, message):
        super().__init__(message)
        self.answer = {"error": {"code": code, "status": status, "message": message}}
        self.code = code


class Swallowed(Exception):
    """It was done, and nobody is told so."""


def invalid(message):
    return Refused(400, "INVALID_ARGUMENT", message)


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


class Document:
    """A service as Google publishes it, with those of its methods whose identifiers begin with `resource`."""

    def __init__(self, name, resource):
        self.document = json.loads((DOCUMENTS / f"{name}.json").read_text())
        self.schemas = self.document["schemas"]
        wanted = [method for method in methods(self.document) if method["id"].startswith(resource)]
        self.methods = [(method, shape(method)) for method in wanted]

    def check(self, schema, value, place, sent):
        """Whether a value is what the document says; whoever `sent` it writes nothing that the service alone says."""
        if "$ref" in schema:
            schema = self.schemas[schema["$ref"]]
        kind = schema.get("type")
        if kind == "object":
            if not isinstance(value, dict):
                raise invalid(f"{place}: an object is expected")
            fields = schema.get("properties", {})
            for name, field in value.items():
                of_field = fields.get(name, schema.get("additionalProperties"))
                if of_field is None:
                    raise invalid(f"{place}.{name}: unknown field")
                if sent and of_field.get("readOnly"):
                    raise invalid(f"{place}.{name}: it is the service's to say")
                self.check(of_field, field, f"{place}.{name}", sent)
            for name, of_field in fields.items():
                if sent and of_field.get("description", "").startswith("Required.") and not value.get(name):
                    raise invalid(f"{place}.{name}: it is required")
        elif kind == "array":
            if not isinstance(value, list):
                raise invalid(f"{place}: a list is expected")
            for item in value:
                self.check(schema["items"], item, place, sent)
        elif kind == "string":
            good = isinstance(value, str) and value in schema.get("enum", [value])
            if good and schema.get("format") == "byte":
                good = base64.b64encode(base64.b64decode(value)).decode() == value
            elif good and schema.get("format") in ("int64", "uint64"):
                good = NUMBER.match(value)
            elif good and schema.get("format") == "google-duration":
                good = DURATION.match(value)
            if not good:
                raise invalid(f"{place}: not a {schema}")
        elif kind == "boolean" and not isinstance(value, bool):
            raise invalid(f"{place}: not a boolean")
        elif kind == "integer" and (not isinstance(value, int) or isinstance(value, bool)):
            raise invalid(f"{place}: not a number")

    def serve(self, port, done, steer=None):
        """Answers by `done(method, name, query, body)`, and at /peer/… by `steer(path, query)`."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def serve(handler):
                text = handler.rfile.read(int(handler.headers.get("content-length") or 0))
                url = urllib.parse.urlsplit(handler.path)
                try:
                    if steer and url.path.startswith("/peer/"):
                        query = dict(urllib.parse.parse_qsl(url.query))
                        code, answer = 200, steer(url.path.removeprefix("/peer/"), query)
                    else:
                        code, answer = 200, self.answer(handler.command, url, handler.headers, text, done)
                except Refused as refused:
                    answer, code = refused.answer, refused.code
                except Swallowed:
                    handler.close_connection = True
                    return
                except (ValueError, KeyError) as error:
                    answer, code = invalid(repr(error)).answer, 400
                data = json.dumps(answer).encode()
                handler.send_response(code)
                handler.send_header("content-type", "application/json; charset=UTF-8")
                handler.send_header("content-length", str(len(data)))
                handler.end_headers()
                handler.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = serve

            def log_message(self, *arguments):
                pass

        ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()

    def answer(self, verb, url, headers, text, done):
        matching = [one for one, path in self.methods if one["httpMethod"] == verb and path.match(url.path)]
        if not matching:
            raise Refused(404, "NOT_FOUND", f"no method {verb} {url.path}")
        [method] = matching
        authorise(headers.get("authorization"), method)
        query = dict(urllib.parse.parse_qsl(url.query, strict_parsing=bool(url.query)))
        for name in query:
            if name not in method["parameters"] and name not in self.document["parameters"]:
                raise invalid(f"unknown parameter {name}")
        body = {}
        if "request" in method:
            if headers.get("content-type") != "application/json":
                raise invalid("the body is not declared as JSON")
            body = json.loads(text)
            self.check(method["request"], body, "body", True)
        elif text:
            raise invalid("this method takes no body")
        name = urllib.parse.unquote(url.path).removeprefix("/v1/").rsplit(":", 1)[0]
        answer = done(method, name, query, body)
        self.check(method["response"], answer, "answer", False)
        return answer
