// Opens and makes age files with the npm package `age-encryption`, whose folder is the first argument. Reads one JSON
// object from standard input: `open` (base64) with `identity`, or `seal` (base64) with `recipient`, or nothing, for a new
// identity. Writes one JSON object.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const age = await import(pathToFileURL(`${process.argv[2]}/node_modules/age-encryption/dist/index.js`));
const asked = JSON.parse(readFileSync(0, "utf8"));
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const text = (bytes) => Buffer.from(bytes).toString("base64");

async function answer() {
  if ("open" in asked) {
    const decrypter = new age.Decrypter();
    decrypter.addIdentity(asked.identity);
    return { opened: text(await decrypter.decrypt(bytes(asked.open))) };
  }
  if ("seal" in asked) {
    const encrypter = new age.Encrypter();
    encrypter.addRecipient(asked.recipient);
    return { sealed: text(await encrypter.encrypt(bytes(asked.seal))) };
  }
  const identity = await age.generateHybridIdentity();
  return { identity, recipient: await age.identityToRecipient(identity) };
}

let result;
try {
  result = await answer();
} catch (error) {
  result = { refused: error.message };
}
process.stdout.write(JSON.stringify(result));
