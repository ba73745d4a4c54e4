"""Seals and opens with Google's Tink what Tidegate opens and seals.

Standard input: one JSON object
    {"format": "shard" | "wrapped_key", "action": "seal" | "open",
     "key": hex, "associated_data": base64, "input": base64}
Standard output: {"output": base64}, or {"refused": "..."} when Tink does not open it.
"""

import base64
import io
import json
import sys

import tink
from tink import aead, json_proto_keyset_format, secret_key_access, streaming_aead

SHA256 = 3  # google.crypto.tink.HashType
SEGMENT_BYTES = 1 << 20


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def number_field(field, value):
    return varint(field << 3) + varint(value)


def bytes_field(field, value):
    return varint(field << 3 | 2) + varint(len(value)) + value


def keyset(type_name, value):
    """A keyset with one raw key, from the bytes of the key's protocol buffer."""
    text = {
        "primaryKeyId": 1,
        "key": [
            {
                "keyData": {
                    "typeUrl": "type.googleapis.com/google.crypto.tink." + type_name,
                    "value": base64.b64encode(value).decode(),
                    "keyMaterialType": "SYMMETRIC",
                },
                "status": "ENABLED",
                "keyId": 1,
                "outputPrefixType": "RAW",
            }
        ],
    }
    return json_proto_keyset_format.parse(json.dumps(text), secret_key_access.TOKEN)


def shard(action, key, associated_data, data):
    streaming_aead.register()
    # AesGcmHkdfStreamingParams: segment size, derived key size, hash.
    params = number_field(1, SEGMENT_BYTES) + number_field(2, 32) + number_field(3, SHA256)
    # AesGcmHkdfStreamingKey: version 0 (absent), params, key value.
    handle = keyset("AesGcmHkdfStreamingKey", bytes_field(2, params) + bytes_field(3, key))
    primitive = handle.primitive(streaming_aead.StreamingAead)
    if action == "open":
        with primitive.new_decrypting_stream(io.BytesIO(data), associated_data) as stream:
            return stream.read()
    out = io.BytesIO()
    out.close = lambda: None
    with primitive.new_encrypting_stream(out, associated_data) as stream:
        stream.write(data)
    return out.getvalue()


def wrapped_key(action, key, associated_data, data):
    aead.register()
    # AesGcmKey: version 0 (absent), key value.
    primitive = keyset("AesGcmKey", bytes_field(3, key)).primitive(aead.Aead)
    return (primitive.decrypt if action == "open" else primitive.encrypt)(data, associated_data)


def main():
    request = json.load(sys.stdin)
    run = {"shard": shard, "wrapped_key": wrapped_key}[request["format"]]
    try:
        output = run(
            request["action"],
            bytes.fromhex(request["key"]),
            base64.b64decode(request["associated_data"]),
            base64.b64decode(request["input"]),
        )
    except tink.TinkError as error:
        json.dump({"refused": str(error)}, sys.stdout)
        return
    json.dump({"output": base64.b64encode(output).decode()}, sys.stdout)


if __name__ == "__main__":
    main()
