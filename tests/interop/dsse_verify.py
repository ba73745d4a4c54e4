"""Verifies a permit with securesystemslib and reads its statement with in-toto-attestation.

Standard input: {"envelope": {...DSSE...}, "public_key": hex of 32 bytes}
Standard output: {"subject": hex, "predicate_type": "...", "predicate": {...}}, or {"refused": "..."}.
With {"sign": base64 payload, "payload_type": "...", "seed": hex} instead, signs: {"envelope": {...}}.
"""

import base64
import hashlib
import json
import sys

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey


def verify(request):
    public = bytes.fromhex(request["public_key"])
    key_id = hashlib.sha256(public).hexdigest()
    key = SSlibKey(key_id, "ed25519", "ed25519", {"public": public.hex()})
    envelope = Envelope.from_dict(request["envelope"])
    try:
        envelope.verify([key], threshold=1)
    except VerificationError as error:
        return {"refused": str(error)}
    if envelope.payload_type != "application/vnd.in-toto+json":
        return {"refused": "not an in-toto statement"}
    message = json_format.Parse(envelope.payload, statement_pb2.Statement())
    statement = Statement.copy_from_pb(message)
    statement.validate()
    (subject,) = message.subject
    return {
        "subject": subject.digest["sha256"],
        "predicate_type": message.predicate_type,
        "predicate": json_format.MessageToDict(message.predicate),
    }


def sign(request):
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(request["seed"]))
    public = private.public_key().public_bytes_raw()
    key = SSlibKey(hashlib.sha256(public).hexdigest(), "ed25519", "ed25519", {"public": public.hex()})
    envelope = Envelope(base64.b64decode(request["sign"]), request["payload_type"], {})
    envelope.sign(CryptoSigner(private, key))
    return {"envelope": envelope.to_dict()}


def main():
    request = json.load(sys.stdin)
    json.dump(sign(request) if "sign" in request else verify(request), sys.stdout)


if __name__ == "__main__":
    main()
