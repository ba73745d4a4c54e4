//! What stands sealed at one site goes to another as it is.

use bytes::Bytes;
use tidegate_contracts::fakes::MemoryStore;
use tidegate_contracts::{ObjectName, Store, StoreExt};
use tidegate_seal::dsse::payload_digest;
use tidegate_seal::packing::manifest_digest;
use tidegate_transfer::{
    Copying, Crossing, Expected, KnownShards, Permitted, Sent, SentShards, TransferError, missing, object_name,
    send_copied, sent_shards,
};
use tidegate_types::Manifest;
use tidegate_types::permit::Permit;

use crate::fixture::{DIGEST_KEY, ORGANISATION, World, files, no_progress, sealed, site};

const SHARD: usize = 64 << 20;

/// Two sites of one organisation: what was sent to `cloud` is needed at `second`.
struct Sites {
    first: World,
    second: World,
    cloud: MemoryStore,
    other: MemoryStore,
}

impl Sites {
    async fn new() -> (Self, Sent) {
        let first = World::new();
        let mut second = World::new();
        second.to = site("second");
        for world in [&first, &second] {
            world.write("noise", &noise(SHARD));
            world.write("train.csv", b"age,died\n70,1\n");
            world.write("empty", b"");
        }
        let sites = Self {
            first,
            second,
            cloud: MemoryStore::new(),
            other: MemoryStore::new(),
        };
        let sent = sites.first.send(&sites.cloud).await.unwrap();
        (sites, sent)
    }

    fn permit(&self) -> Permit {
        Permit {
            copied_from: Some(site("cloud")),
            ..self.second.permit()
        }
    }

    fn permitted(&self) -> Permitted<Manifest> {
        self.second.verify(&self.permit()).unwrap()
    }

    async fn shards(&self, sent: &Sent, manifest: &Manifest) -> Result<SentShards, TransferError> {
        let permit = self.first.permit();
        let permit_digest = payload_digest(&self.first.sign(&permit, &self.first.manifest())).unwrap();
        let expected = Expected {
            packing_list: &sent.packing_list,
            packing_list_digest: &sent.packing_list_digest,
            sender: &self.first.public,
            organisation: ORGANISATION,
            artifact: None,
            permit: &permit.id,
            permit_digest: &permit_digest,
            to: &self.first.to.site,
            key_commitment: None,
            byte_limit: u64::MAX,
            plaintext_limit: u64::MAX,
            ceiling: None,
        };
        sent_shards(&expected, &self.cloud, &self.first.data_key, manifest).await
    }

    async fn name(&self, shards: &SentShards, permitted: &Permitted<Manifest>) -> Result<Sent, TransferError> {
        let crossing = Crossing {
            source: &self.second.source(),
            store: &self.other,
            signer: &self.second.owner,
            data_key: &self.second.data_key,
            digest_key: &DIGEST_KEY,
            known: KnownShards::NONE,
            state: &self.second.state(),
            shards_in_flight: 2,
            progress: &no_progress,
            gate: &*self.second.gate,
        };
        send_copied(permitted, &crossing, &site("cloud"), shards).await
    }

    /// Opens what was named, as a worker at the second site to which it was lent.
    async fn open(&self, sent: &Sent) -> Result<tidegate_transfer::Received, TransferError> {
        let manifest = self.first.manifest();
        let artifact = manifest_digest(&manifest).unwrap();
        let permit = self.permit();
        let digest = payload_digest(&self.second.sign(&permit, &manifest)).unwrap();
        let copying = Copying::new(&self.other, &self.cloud);
        let expected = Expected {
            packing_list: &sent.packing_list,
            packing_list_digest: &sent.packing_list_digest,
            sender: &self.second.public,
            organisation: ORGANISATION,
            artifact: Some(&artifact),
            permit: &permit.id,
            permit_digest: &digest,
            to: &self.second.to.site,
            key_commitment: None,
            byte_limit: u64::MAX,
            plaintext_limit: u64::MAX,
            ceiling: None,
        };
        std::fs::create_dir_all(self.second.destination().parent().unwrap()).unwrap();
        let destination = self.second.destination();
        tidegate_transfer::receive(&expected, &copying, &self.second.data_key, &destination).await
    }
}

/// Bytes that zstd cannot shrink.
fn noise(bytes: usize) -> Vec<u8> {
    (0_u64..)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .take(bytes)
        .collect()
}

#[tokio::test]
async fn what_stands_at_one_site_is_named_at_another_and_brought_over_by_whoever_opens_it() {
    let (sites, first) = Sites::new().await;
    let wanted = files(&sites.first.source());
    let manifest = sites.first.manifest();
    let permitted = sites.permitted();
    // Nothing is read at home.
    std::fs::remove_dir_all(sites.second.source()).unwrap();
    let shards = sites.shards(&first, &manifest).await.unwrap();
    let sent = sites.name(&shards, &permitted).await.unwrap();
    let copied: Vec<_> = shards.objects().cloned().collect();
    assert_eq!(copied, first.objects[..2], "both shards, as they are");
    assert_eq!(sent.objects[..2], copied);
    assert_eq!(
        sent.bytes,
        sent.objects[2].bytes + sent.objects[3].bytes,
        "index and list"
    );
    assert!(sent.bytes < 10_000 && sent.copied && !first.copied);
    assert_eq!(sealed(&sites.other).len(), 1, "the index alone was sent");
    assert_eq!(missing(&sites.other, &copied).await.unwrap(), copied);
    assert_eq!(
        sites.name(&shards, &permitted).await.unwrap().packing_list_digest,
        sent.packing_list_digest
    );

    let received = sites.open(&sent).await.unwrap();
    assert_eq!(received.manifest, manifest);
    assert_eq!(files(&sites.second.destination()), wanted);
    assert_eq!(
        missing(&sites.other, &copied).await.unwrap(),
        [],
        "now they stand there"
    );
    // Whoever comes next needs the first site no more.
    sites.cloud.delete(&object_name(&copied[0])).await.unwrap();
    std::fs::remove_dir_all(sites.second.destination()).unwrap();
    sites.open(&sent).await.unwrap();
}

#[tokio::test]
async fn what_no_permit_names_is_not_copied() {
    let (sites, first) = Sites::new().await;
    let manifest = sites.first.manifest();
    let shards = sites.shards(&first, &manifest).await.unwrap();
    for from in [None, Some(site("elsewhere"))] {
        let permit = Permit {
            copied_from: from,
            ..sites.permit()
        };
        let refused = sites.name(&shards, &sites.second.verify(&permit).unwrap()).await;
        let Err(TransferError::Refused(refusal)) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(refusal.rule, "permit-other-site");
    }
    assert_eq!(sites.other.list_all("", 10).await.unwrap(), []);
    // Another artifact than the one that was sent, and one that is not there as a whole.
    sites.first.write("more", b"1");
    let other = sites.shards(&first, &sites.first.manifest()).await;
    assert!(matches!(other, Err(TransferError::Unexpected { .. })), "{other:?}");
    sites.cloud.delete(&object_name(&first.objects[1])).await.unwrap();
    let gone = sites.shards(&first, &manifest).await;
    assert!(matches!(gone, Err(TransferError::Unexpected { .. })), "{gone:?}");
}

#[tokio::test]
async fn other_bytes_than_were_named_are_not_kept() {
    let (sites, first) = Sites::new().await;
    let shards = sites.shards(&first, &sites.first.manifest()).await.unwrap();
    let sent = sites.name(&shards, &sites.permitted()).await.unwrap();
    let name = object_name(&first.objects[0]);
    let mut altered = sites.cloud.get(&name, u64::MAX).await.unwrap().to_vec();
    altered[SHARD / 2] ^= 1;
    sites.cloud.delete(&name).await.unwrap();
    sites.cloud.put_new(&name, Bytes::from(altered)).await.unwrap();
    let refused = sites.open(&sent).await.unwrap_err();
    assert!(refused.to_string().contains("other bytes stand there"), "{refused}");
    assert!(!refused.is_transient());
    let there = missing(&sites.other, &first.objects[..1]).await.unwrap();
    assert_eq!(there.len(), 1, "nothing of it stands under its name");
    assert_eq!(sites.second.received_names(), Vec::<String>::new());
}

#[tokio::test]
async fn several_machines_bring_the_same_over_at_once() {
    let (sites, first) = Sites::new().await;
    let name: ObjectName = object_name(&first.objects[1]);
    let copying = Copying::new(&sites.other, &sites.cloud);
    let all = (0..4).map(|_| copying.get(&name, 1 << 20));
    let whole = sites.cloud.get(&name, 1 << 20).await.unwrap();
    for got in futures::future::join_all(all).await {
        assert_eq!(got.unwrap(), whole);
    }
}

#[tokio::test]
async fn what_cannot_be_copied_after_all_is_sent_from_home() {
    let (sites, first) = Sites::new().await;
    let shards = sites.shards(&first, &sites.first.manifest()).await.unwrap();
    let permitted = sites.permitted();
    // One of them stands there for another crossing.
    let other = object_name(&first.objects[1]);
    let body = sites.cloud.get(&other, u64::MAX).await.unwrap();
    sites.other.put_new(&other, body).await.unwrap();
    // The names were noted, and then the process was killed: the list is not there.
    let sent = sites.name(&shards, &permitted).await.unwrap();
    sites.other.delete(&sent.packing_list).await.unwrap();
    let home = sites.second.send_as(&permitted, &sites.other).await.unwrap();
    assert_ne!(home.objects[0], sent.objects[0]);
    assert!(sites.other.head(&other).await.is_ok(), "it is another crossing's");
    assert!(!home.copied && home.bytes == home.objects.iter().map(|object| object.bytes).sum::<u64>());
    assert_eq!(missing(&sites.other, &home.objects[..3]).await.unwrap(), []);
    assert!(
        !sealed(&sites.other).contains(&sent.objects[2].digest.to_hex()),
        "the index that nothing names"
    );
}
