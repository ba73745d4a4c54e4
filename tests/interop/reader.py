"""Opens a crossing: a reader written from docs/formats.md alone.

Standard input: a crossing like tests/vectors/crossing.json. Standard output: the SHA-256 of every
file that comes out of it by path, or {"refused": "..."}.
"""

import base64
import hashlib
import hmac
import json
import sys

import zstandard
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEGMENT = 1 << 20


def check(condition, what):
    if not condition:
        raise ValueError(what)


def canonical(value):  # enough of RFC 8785 for texts and whole numbers
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def open_dsse(envelope, payload_type, key):
    payload = base64.b64decode(envelope["payload"], validate=True)
    check(envelope["payloadType"] == payload_type, "another payload type")
    signed = b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type.encode(), len(payload), payload)
    Ed25519PublicKey.from_public_bytes(key).verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
    check(canonical(json.loads(payload)) == payload, "not canonical")
    return payload


def open_stream(key, associated_data, sealed):
    check(sealed[0] == 40, "not a stream")
    derived = AESGCM(HKDF(hashes.SHA256(), 32, sealed[1:33], canonical(associated_data)).derive(key))
    starts = list(range(0, len(sealed), SEGMENT))
    plaintext = b""
    for i, start in enumerate(starts):
        nonce = sealed[33:40] + i.to_bytes(4, "big") + bytes([i == len(starts) - 1])
        plaintext += derived.decrypt(nonce, sealed[max(start, 40) : start + SEGMENT], b"")
    return plaintext


def fetch(objects, named):
    data = base64.b64decode(objects["sealed/" + named["digest"].removeprefix("sha256:")])
    check((sha256(data), len(data)) == (named["digest"], named["bytes"]), "another object")
    return data


def read(crossing):
    owner = base64.b64decode(crossing["owner_public_key"])
    permit = open_dsse(crossing["permit"], "application/vnd.in-toto+json", owner)
    packed = json.loads(base64.b64decode(crossing["objects"][crossing["packing_list"]]))
    packing = json.loads(open_dsse(packed, "application/vnd.tidegate.packing-list+json", owner))
    check(packing["format"] == "tidegate.packing-list.v1", "another format")
    subject = json.loads(permit)["subject"][0]["digest"]["sha256"]
    check(packing["artifact"] == "sha256:" + subject, "a permit for something else")
    check(packing["permit_digest"] == sha256(permit), "another permit")

    key = bytes.fromhex(crossing["data_key"])
    commitment = hmac.digest(key, b"tidegate.data-key.commitment.v1", "sha256")
    check(packing["key_commitment"] == "sha256:" + commitment.hex(), "another data key")
    names = {"organisation": crossing["organisation"]}
    context = names | {"type": "tidegate.sealed-index.v1", "artifact": packing["artifact"]}
    index = json.loads(open_stream(key, context, fetch(crossing["objects"], packing["index"])))
    check(sha256(canonical(index["manifest"])) == packing["artifact"], "another manifest")

    content = b""
    for named, shard in zip(packing["shards"], index["shards"], strict=True):
        context = names | {"type": "tidegate.shard.v1", "shard": shard["id"]}
        plain = open_stream(bytes.fromhex(shard["key"]), context, fetch(crossing["objects"], named))
        if shard["zstd"]:
            plain = zstandard.ZstdDecompressor().decompress(plain, max_output_size=shard["plaintext_bytes"])
        check(len(plain) == shard["plaintext_bytes"], "another length")
        content += plain
    files = {}
    for file in index["manifest"]["files"]:
        files[file["path"]], content = sha256(content[: file["bytes"]]), content[file["bytes"] :]
    check(content == b"", "more bytes than files")
    return files


if __name__ == "__main__":
    try:
        answer = read(json.load(sys.stdin))
    except (ValueError, KeyError, InvalidSignature, InvalidTag) as error:
        answer = {"refused": f"{type(error).__name__}: {error}"}
    json.dump(answer, sys.stdout)
