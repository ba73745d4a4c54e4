//! The contract of the store trait, over each peer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate_cloud::{CloudStore, Environment, GoogleKmsCustody, KeyVaultCustody, KmsCustody, VaultCustody};
use tidegate_contracts::{Custody, CustodyError, ObjectName, Store, StoreError, conformance};

use crate::others::azurite;
use crate::peers::stores::{ACCOUNT, ACCOUNT_KEY, azure_storage, google_storage};
use crate::peers::{Peer, bao, entra, google_kms, key_vault, make_bucket, moto, python, seaweed};

/// Credentials as the environment would have them.
pub(crate) fn environment(variables: &[(&str, &str)]) -> Environment {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    variables.iter().map(owned).collect()
}

pub(crate) fn open(address: &str, environment: &Environment) -> CloudStore {
    CloudStore::open(address.parse().unwrap(), environment).unwrap()
}

pub(crate) fn admin() -> Environment {
    environment(&[("AWS_ACCESS_KEY_ID", "AKADMIN"), ("AWS_SECRET_ACCESS_KEY", "SKADMIN")])
}

/// A keeper's identity, as Entra ID knows it.
pub(crate) fn identity(peer: &Peer) -> Environment {
    let known = peer.entra_identity().map(|(name, value)| (name.to_owned(), value));
    known.into()
}

/// A service account of the peer, by its file.
pub(crate) fn service_account(peer: &Peer, name: &str) -> Environment {
    let file = peer.folder().join(format!("{name}.json"));
    environment(&[("GOOGLE_SERVICE_ACCOUNT", file.to_str().unwrap())])
}

#[tokio::test]
async fn bytes_to_and_from_a_store_move_no_faster_than_they_may() {
    let Some(peer) = seaweed() else { return };
    make_bucket(&peer, "stores");
    let address = peer.s3("stores", "st-mary/paced").parse().unwrap();
    let store = CloudStore::open_paced(address, &admin(), Some(4 << 20)).unwrap();
    let names = ["sealed/aa", "sealed/bb"].map(|name| ObjectName::new(name).unwrap());
    let noise = |seed: u64| -> Bytes {
        let words = (0..1_u64 << 18).map(|n| (n + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        words.flat_map(u64::to_le_bytes).collect()
    };
    let bodies = [noise(1), noise(2)];
    // Two at once share the limit. What they may be early by is a piece and what clocks are late.
    let early = Duration::from_millis(100);
    let began = Instant::now();
    let (first, second) = tokio::join!(
        store.put_new(&names[0], bodies[0].clone()),
        store.put_new(&names[1], bodies[1].clone())
    );
    first.and(second).unwrap();
    assert!(
        began.elapsed() + early >= Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    let began = Instant::now();
    for (name, body) in names.iter().zip(&bodies) {
        assert!(store.get(name, 1 << 22).await.unwrap() == *body);
    }
    assert!(
        began.elapsed() + early >= Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    // The conditions of requests are kept.
    let again = store.put_new(&names[0], bodies[1].clone()).await;
    assert!(matches!(again, Err(StoreError::AlreadyExists(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seaweed_is_a_store() {
    let Some(peer) = seaweed() else { return };
    make_bucket(&peer, "stores");
    let admin = admin();
    let stores =
        |name: &str| -> Arc<dyn Store> { Arc::new(open(&peer.s3("stores", &format!("st-mary/{name}")), &admin)) };
    conformance::store(&stores).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azurite_is_a_store() {
    let Some(peer) = azurite() else { return };
    let key = environment(&[("AZURE_STORAGE_KEY", ACCOUNT_KEY)]);
    let (port, certificates) = (peer.port(), peer.folder().join("ca.pem"));
    let options = format!(
        "endpoint=https://127.0.0.1:{port}/{ACCOUNT}&certificates={}",
        certificates.display()
    );
    let stores = |name: &str| -> Arc<dyn Store> {
        Arc::new(open(&format!("az://{ACCOUNT}/stores/st-mary/{name}?{options}"), &key))
    };
    conformance::store(&stores).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hierarchical_storage_account_is_a_store() {
    let Some(peer) = azure_storage(&[]) else { return };
    let known = identity(&peer);
    let stores = |name: &str| -> Arc<dyn Store> { Arc::new(open(&peer.azure(&format!("st-mary/{name}")), &known)) };
    conformance::store(&stores).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_cloud_storage_is_a_store() {
    let Some(peer) = google_storage(&[]) else { return };
    let known = service_account(&peer, "known");
    let stores = |name: &str| -> Arc<dyn Store> { Arc::new(open(&peer.google(&format!("st-mary/{name}")), &known)) };
    conformance::store(&stores).await.unwrap();
    let stranger = open(&peer.google("st-mary"), &service_account(&peer, "stranger"));
    let error = stranger.list("", None).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
}

#[tokio::test]
async fn the_transit_engine_is_a_custody() {
    let Some((peer, role, secret)) = bao() else { return };
    let known = environment(&[("VAULT_ROLE_ID", &role), ("VAULT_SECRET_ID", &secret)]);
    let (port, certificates) = (peer.port(), peer.folder().join("ca.pem"));
    let custody = |name: &str, environment: &Environment| -> Arc<dyn Custody> {
        let address = format!(
            "vault:https://127.0.0.1:{port}/transit/{name}?certificates={}",
            certificates.display()
        );
        Arc::new(VaultCustody::open(address.parse().unwrap(), environment).unwrap())
    };
    conformance::custody(&|name| custody(name, &known)).await.unwrap();
    // Whoever is not known there, or asks for another key, is told so, and not that a key is wrong.
    let stranger = environment(&[("VAULT_ROLE_ID", &role), ("VAULT_SECRET_ID", "guessed")]);
    for custody in [custody("site", &stranger), custody("third", &known)] {
        let error = custody.wrap(&[7; 32], "context").await.unwrap_err();
        assert!(matches!(error, CustodyError::Unreachable { .. }), "{error}");
        assert!(
            !error.to_string().contains("guessed") && !error.to_string().contains(&secret),
            "{error}"
        );
    }
    let site = custody("site", &known);
    let wrapped = site.wrap(&[7; 32], "context").await.unwrap();
    drop(peer);
    let error = site.unwrap_key(&wrapped, "context").await.unwrap_err();
    assert!(matches!(error, CustodyError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn amazons_key_service_is_a_custody() {
    let Some((peer, id, secret)) = moto() else { return };
    let known = environment(&[("AWS_ACCESS_KEY_ID", &id), ("AWS_SECRET_ACCESS_KEY", &secret)]);
    let custody = |name: &str, environment: &Environment| {
        let address = format!(
            "aws-kms://eu-central-1/{name}?endpoint=http://127.0.0.1:{}",
            peer.port()
        );
        Arc::new(KmsCustody::open(address.parse().unwrap(), environment).unwrap())
    };
    for name in ["site", "other"] {
        // The second time finds the key.
        custody(name, &known).create().await.unwrap();
        custody(name, &known).create().await.unwrap();
    }
    conformance::custody(&|name| -> Arc<dyn Custody> { custody(name, &known) })
        .await
        .unwrap();
    // Whoever is not known there, or asks for a key that was never made, is told so, and not that a key is wrong.
    let stranger = environment(&[("AWS_ACCESS_KEY_ID", &id), ("AWS_SECRET_ACCESS_KEY", "guessed")]);
    let wrapped = custody("site", &known).wrap(&[7; 32], "context").await.unwrap();
    for custody in [custody("site", &stranger), custody("third", &known)] {
        let wrap = custody.wrap(&[7; 32], "context").await.unwrap_err();
        let unwrap = custody.unwrap_key(&wrapped, "context").await.unwrap_err();
        for error in [wrap, unwrap] {
            assert!(matches!(error, CustodyError::Unreachable { .. }), "{error}");
            assert!(
                !error.to_string().contains("guessed") && !error.to_string().contains(&secret),
                "{error}"
            );
        }
    }
    // What was destroyed waits for its end in the service, and no name leads to it; others are left alone.
    let told = python(&format!(
        "import boto3\nkms = boto3.client('kms', endpoint_url='http://127.0.0.1:{}', region_name='eu-central-1', \
         aws_access_key_id='{id}', aws_secret_access_key='{secret}')\n\
         names = [alias for alias in kms.list_aliases()['Aliases'] if '/site/' in alias['AliasName']]\n\
         print(*sorted(alias['AliasName'] for alias in names))",
        peer.port()
    ));
    assert_eq!(told.trim(), "alias/site/2 alias/site/3");
    drop(peer);
}

#[tokio::test]
async fn googles_key_service_is_a_custody() {
    let Some(peer) = google_kms(&["site", "other"]) else {
        return;
    };
    let port = peer.port();
    let account = |name: &str| {
        let file = peer.folder().join(format!("{name}.json"));
        environment(&[("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())])
    };
    let custody = |name: &str, account: &Environment| -> Arc<dyn Custody> {
        let address = format!("gcp-kms://st-mary/europe-west3/hospitals/{name}?endpoint=http://127.0.0.1:{port}");
        Arc::new(GoogleKmsCustody::open(address.parse().unwrap(), account).unwrap())
    };
    let known = account("known");
    conformance::custody(&|name| custody(name, &known)).await.unwrap();
    // Whoever is not known there, or asks for a key that nobody made, is told so, and not that a key is wrong.
    let wrapped = custody("site", &known).wrap(&[7; 32], "context").await.unwrap();
    for (custody, why) in [
        (custody("site", &account("stranger")), "PERMISSION_DENIED"),
        (custody("third", &known), "NOT_FOUND"),
    ] {
        let wrap = custody.wrap(&[7; 32], "context").await.unwrap_err();
        let unwrap = custody.unwrap_key(&wrapped, "context").await.unwrap_err();
        for error in [wrap, unwrap] {
            assert!(
                matches!(&error, CustodyError::Unreachable { why: told, .. } if told.contains(why)),
                "{error}"
            );
        }
    }
    // Google's own client opens what was wrapped: behind 17 bytes of ours it is the service's, and the context is its
    // associated data.
    let hex: String = wrapped.iter().map(|byte| format!("{byte:02x}")).collect();
    let told = python(&format!(
        r#"
import base64
from google.oauth2 import service_account
from googleapiclient.discovery import build
account = service_account.Credentials.from_service_account_file("{}",
    scopes=["https://www.googleapis.com/auth/cloudkms"]).with_always_use_jwt_access(True)
client = build("cloudkms", "v1", credentials=account, client_options={{"api_endpoint": "http://127.0.0.1:{port}"}})
keys = client.projects().locations().keyRings().cryptoKeys()
answer = keys.decrypt(name="projects/st-mary/locations/europe-west3/keyRings/hospitals/cryptoKeys/site", body={{
    "ciphertext": base64.b64encode(bytes.fromhex("{hex}")[17:]).decode(),
    "additionalAuthenticatedData": base64.b64encode(b"context").decode()}}).execute()
states = keys.cryptoKeyVersions().list(
    parent="projects/st-mary/locations/europe-west3/keyRings/hospitals/cryptoKeys/site").execute()
print(base64.b64decode(answer["plaintext"]) == bytes([7]) * 32,
    *(version["state"] for version in states["cryptoKeyVersions"]))
"#,
        peer.folder().join("known.json").display()
    ));
    // A page has two of the three versions.
    assert_eq!(told.trim(), "True DESTROY_SCHEDULED ENABLED");
    // What is switched off, or destroyed with nothing in its place, can come back: nobody is told that it is lost.
    let held = custody("site", &known);
    held.unwrap_key(&wrapped, "context").await.unwrap();
    for (change, why) in [
        (
            "patch(name=name, updateMask=\"state\", body={\"state\": \"DISABLED\"})",
            "not enabled",
        ),
        ("destroy(name=name, body={})", "restore it"),
    ] {
        python(&format!(
            r#"
from google.oauth2 import service_account
from googleapiclient.discovery import build
account = service_account.Credentials.from_service_account_file("{}",
    scopes=["https://www.googleapis.com/auth/cloudkms"]).with_always_use_jwt_access(True)
client = build("cloudkms", "v1", credentials=account, client_options={{"api_endpoint": "http://127.0.0.1:{port}"}})
for number in (2, 3):
    name = f"projects/st-mary/locations/europe-west3/keyRings/hospitals/cryptoKeys/site/cryptoKeyVersions/{{number}}"
    client.projects().locations().keyRings().cryptoKeys().cryptoKeyVersions().{change}.execute()
"#,
            peer.folder().join("known.json").display()
        ));
        for custody in [&held, &custody("site", &known)] {
            let error = custody.unwrap_key(&wrapped, "context").await.unwrap_err();
            assert!(
                matches!(&error, CustodyError::Unreachable { why: told, .. } if told.contains(why)),
                "{error}"
            );
        }
    }
    let site = custody("site", &known);
    drop(peer);
    let error = site.unwrap_key(&wrapped, "context").await.unwrap_err();
    assert!(matches!(error, CustodyError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn azures_key_vault_is_a_custody() {
    let Some(peer) = key_vault() else { return };
    let port = peer.port();
    let here = format!("http://127.0.0.1:{port}");
    let custody = |name: &str, environment: &Environment| {
        let address = format!("key-vault:{here}/{name}");
        Arc::new(KeyVaultCustody::open(address.parse().unwrap(), environment).unwrap())
    };
    let by_secret = |secret: &str| -> Environment {
        let variables = entra(&peer, secret).into_iter();
        variables.map(|(name, value)| (name.to_owned(), value)).collect()
    };
    let known = by_secret("SKEEPER");
    for name in ["site", "other"] {
        // The second time finds the key.
        custody(name, &known).create().await.unwrap();
        custody(name, &known).create().await.unwrap();
    }
    conformance::custody(&|name| -> Arc<dyn Custody> { custody(name, &known) })
        .await
        .unwrap();

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "federated-token\n").unwrap();
    let mut federated = known.clone();
    federated.remove("AZURE_CLIENT_SECRET");
    federated.insert("AZURE_FEDERATED_TOKEN_FILE".to_owned(), file.display().to_string());
    let machine = environment(&[("AZURE_POD_IDENTITY_AUTHORITY_HOST", &here)]);
    let wrapped = custody("site", &known).wrap(&[7; 32], "context").await.unwrap();
    for environment in [&federated, &machine] {
        let custody = custody("site", environment);
        // More calls than a token lasts.
        for _ in 0..4 {
            assert_eq!(custody.unwrap_key(&wrapped, "context").await.unwrap(), [7; 32]);
        }
    }

    // Everybody may know the public part of a key: what somebody else wrapped with it is not opened.
    let told = python(&format!(
        r#"
import base64, hashlib, json, urllib.parse, urllib.request
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
wrapped = bytes.fromhex("{}")
token = json.load(urllib.request.urlopen(urllib.request.Request("{here}/metadata/identity/oauth2/token?"
    "api-version=2018-02-01&resource=https://vault.azure.net", headers={{"Metadata": "true"}})))["access_token"]
number = int.from_bytes(wrapped[1:9], "big")
key = json.load(urllib.request.urlopen(urllib.request.Request(f"{here}/keys/site-{{number}}?api-version=7.4",
    headers={{"Authorization": "Bearer " + token}})))["key"]
value = lambda text: int.from_bytes(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")
public = rsa.RSAPublicNumbers(value(key["e"]), value(key["n"])).public_key()
forged = public.encrypt(bytes([8]) * 32, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
rest = wrapped[17:35] + forged + wrapped[35 + len(forged):]
print((wrapped[:9] + hashlib.sha256(wrapped[1:9] + rest).digest()[:8] + rest).hex())
"#,
        wrapped.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    ));
    let digits = told.trim().as_bytes().chunks(2);
    let forged: Vec<u8> = digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    assert_eq!(forged.len(), wrapped.len());
    let error = custody("site", &known)
        .unwrap_key(&forged, "context")
        .await
        .unwrap_err();
    assert!(matches!(error, CustodyError::WrongKey { .. }), "{error}");

    // A key that is switched off can be switched on again: nobody is told that what it wrapped is lost.
    python(&format!(
        r#"
import json, urllib.request
wrapped = bytes.fromhex("{}")
token = json.load(urllib.request.urlopen(urllib.request.Request("{here}/metadata/identity/oauth2/token?"
    "api-version=2018-02-01&resource=https://vault.azure.net", headers={{"Metadata": "true"}})))["access_token"]
number, version = int.from_bytes(wrapped[1:9], "big"), wrapped[17:33].hex()
urllib.request.urlopen(urllib.request.Request(f"{here}/keys/site-{{number}}/{{version}}?api-version=7.4", method="PATCH",
    data=b'{{"attributes": {{"enabled": false}}}}',
    headers={{"Authorization": "Bearer " + token, "content-type": "application/json"}}))
"#,
        wrapped.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    ));
    let error = custody("site", &known)
        .unwrap_key(&wrapped, "context")
        .await
        .unwrap_err();
    assert!(
        matches!(&error, CustodyError::Unreachable { why, .. } if why.contains("disabled")),
        "{error}"
    );
    // The one before it wraps meanwhile.
    let meanwhile = custody("site", &known).wrap(&[9; 32], "context").await.unwrap();
    assert_eq!(
        custody("site", &known).unwrap_key(&meanwhile, "context").await.unwrap(),
        [9; 32]
    );

    // Whoever is not known there, or asks for a key that was never made, is told so, and not that a key is wrong.
    for custody in [custody("site", &by_secret("guessed")), custody("third", &known)] {
        let wrap = custody.wrap(&[7; 32], "context").await.unwrap_err();
        let unwrap = custody.unwrap_key(&wrapped, "context").await.unwrap_err();
        for error in [wrap, unwrap] {
            assert!(matches!(error, CustodyError::Unreachable { .. }), "{error}");
            assert!(!error.to_string().contains("guessed"), "{error}");
        }
    }
    drop(peer);
    let error = custody("site", &known)
        .unwrap_key(&wrapped, "context")
        .await
        .unwrap_err();
    assert!(matches!(error, CustodyError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn what_the_server_forbids_is_denied_and_what_is_missing_is_told_apart() {
    let Some(peer) = seaweed() else { return };
    make_bucket(&peer, "stores");
    let name = ObjectName::new("one").unwrap();
    let body = Bytes::from_static(b"one");
    let reader = environment(&[("AWS_ACCESS_KEY_ID", "AKREADER"), ("AWS_SECRET_ACCESS_KEY", "SKREADER")]);
    let store = open(&peer.s3("stores", "p"), &reader);
    let denied = store.put_new(&name, body.clone()).await.unwrap_err();
    assert!(matches!(denied, StoreError::Denied { .. }), "{denied}");
    let wrong = environment(&[("AWS_ACCESS_KEY_ID", "AKADMIN"), ("AWS_SECRET_ACCESS_KEY", "SKWRONG")]);
    let store = open(&peer.s3("stores", "p"), &wrong);
    for error in [
        store.put_new(&name, body.clone()).await.unwrap_err(),
        store.get(&name, 10).await.unwrap_err(),
        store.head(&name).await.unwrap_err(),
        store.list("", None).await.unwrap_err(),
        store.delete(&name).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Denied { .. }), "{error}");
        assert!(
            !error.to_string().contains("SKWRONG") && !error.to_string().contains("AKADMIN"),
            "{error}"
        );
    }
    let admin = admin();
    let store = open(&peer.s3("missing", "p"), &admin);
    // A bucket that is missing is no empty one.
    let missing = store.list("", None).await.unwrap_err();
    assert!(matches!(missing, StoreError::Permanent { .. }), "{missing}");
}
