"""Google's Cloud KMS as far as custody of keys needs it, over Google's own discovery document (`google_discovery.py`).

    python google_kms.py PORT KEYRING KEY…

A version that was made is generated at its second look.
"""

import base64
import os
import sys
import threading

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from google_discovery import Document, Refused

LOCK = threading.Lock()


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


def alone(method, name, query, body):
    with LOCK:
        return done(method, name.removesuffix("/cryptoKeyVersions"), query, body)


Document("cloudkms.v1", "cloudkms.projects.locations.keyRings.cryptoKeys.").serve(int(sys.argv[1]), alone)
