//! What a sender seals, its receiver opens, and nobody else does; and what happens to every part on
//! the way is found.

use proptest::prelude::*;
use tidegate_seal::SealError;
use tidegate_seal::digest::sha256;
use tidegate_seal::dsse;
use tidegate_seal::key::DataKey;
use tidegate_seal::packing::{manifest_digest, open_index, open_packing_list, seal_index, sign_packing_list};
use tidegate_seal::permit::{open_permit, sign_permit};
use tidegate_seal::shard::{MAX_PLAINTEXT_BYTES, MAX_SEALED_BYTES, PlainShard, open_shard, seal_shard};
use tidegate_seal::sign::SigningKey;
use tidegate_types::Digest;
use tidegate_types::artifact::SealedIndex;
use tidegate_types::permit::{IN_TOTO_PAYLOAD, PERMIT_PREDICATE};

use crate::sample::{Crossing, ORGANISATION, crossing, keyed, permit};

fn owner() -> SigningKey {
    SigningKey::from_seed(&[1; 32]).unwrap()
}

fn stranger() -> SigningKey {
    SigningKey::from_seed(&[2; 32]).unwrap()
}

/// Noise that zstd cannot shrink, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length.div_ceil(32) as u64)
        .flat_map(|i| *sha256(&i.to_be_bytes()).as_bytes())
        .collect();
    bytes.truncate(length);
    bytes
}

#[test]
fn a_receiver_gets_exactly_what_was_sent() {
    let envelope = sign_permit(&owner(), &permit(), &sha256(b"x"), "x").unwrap();
    let sent = crossing("admissions/train", dsse::payload_digest(&envelope).unwrap());
    let object = sign_packing_list(&owner(), &sent.list).unwrap();

    let list = open_packing_list(&object, &owner().public()).unwrap();
    assert_eq!(list, sent.list);
    assert_eq!(list.key_commitment, sent.data_key.commitment());
    let sealed = &sent.objects[&list.index.digest];
    let index = open_index(sealed, &sent.data_key, ORGANISATION, &list.artifact).unwrap();
    for (((shard, key), file), content) in list
        .shards
        .iter()
        .zip(&index.shards)
        .zip(&index.manifest.files)
        .zip(crate::sample::files().values())
    {
        let opened = open_shard(&sent.objects[&shard.digest], key, ORGANISATION).unwrap();
        assert!(opened == *content, "{}", file.path);
        assert_eq!(keyed(&opened), file.keyed_digest);
    }
    assert!(
        index.shards[0].zstd && !index.shards[1].zstd,
        "rows shrink, noise does not"
    );
    assert!(list.shards[0].bytes < index.shards[0].plaintext_bytes * 9 / 10);
}

#[test]
fn what_anybody_may_see_names_nothing() {
    let sent = crossing("admissions/train", sha256(b"permit"));
    let object = sign_packing_list(&owner(), &sent.list).unwrap();
    let visible = [
        object,
        dsse::peek(&dsse::from_bytes(&sign_packing_list(&owner(), &sent.list).unwrap()).unwrap()).unwrap(),
    ]
    .into_iter()
    .chain(sent.objects.values().cloned());
    let secrets: Vec<String> = ["train/part-0.csv", "admissions/train", "grüße", "dataset"]
        .map(str::to_owned)
        .into_iter()
        .chain([hex::encode(sent.data_key.expose())])
        .chain(
            sent.index
                .shards
                .iter()
                .flat_map(|key| [key.key.clone(), key.id.clone()]),
        )
        .collect();
    for bytes in visible {
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "`{secret}` can be seen");
        }
    }
    let shown = format!("{:?} {:?}", sent.index, sent.data_key);
    assert!(!shown.contains(&hex::encode(sent.data_key.expose())));
    for shard in &sent.index.shards {
        assert!(
            shown.contains(&shard.id) && !shown.contains(&shard.key),
            "no key in Debug"
        );
    }
}

#[test]
fn shards_are_not_taken_for_one_another() {
    let (first, first_key) = seal_shard(b"first", ORGANISATION).unwrap();
    let (second, second_key) = seal_shard(b"second", ORGANISATION).unwrap();
    let refused = |result: Result<Vec<u8>, SealError>| matches!(result, Err(SealError::WrongKey { .. }));
    assert!(refused(open_shard(&first, &second_key, ORGANISATION)), "swapped shards");
    assert!(
        refused(open_shard(&first, &first_key, "st-john")),
        "another organisation"
    );
    let mut renamed = first_key.clone();
    renamed.id = second_key.id.clone();
    assert!(refused(open_shard(&first, &renamed, ORGANISATION)), "another id");
    let mut rekeyed = second_key.clone();
    rekeyed.key = first_key.key.clone();
    assert!(refused(open_shard(&second, &rekeyed, ORGANISATION)), "another key");
    assert_eq!(open_shard(&second, &second_key, ORGANISATION).unwrap(), b"second");
}

#[test]
fn a_shard_holds_what_its_key_says_and_no_more() {
    for plaintext in [noise(5000), vec![b'a'; 5000], Vec::new()] {
        let (sealed, key) = seal_shard(&plaintext, ORGANISATION).unwrap();
        assert_eq!(open_shard(&sealed, &key, ORGANISATION).unwrap(), plaintext);
        for claimed in [
            key.plaintext_bytes + 1,
            key.plaintext_bytes.saturating_sub(1),
            70 << 20,
            u64::MAX,
        ] {
            if claimed == key.plaintext_bytes {
                continue;
            }
            let mut lying = key.clone();
            lying.plaintext_bytes = claimed;
            let error = open_shard(&sealed, &lying, ORGANISATION).unwrap_err();
            assert!(
                matches!(error, SealError::Mismatch { .. } | SealError::TooLarge { .. }),
                "{error}"
            );
        }
        let mut lying = key.clone();
        lying.zstd = !key.zstd;
        assert!(open_shard(&sealed, &lying, ORGANISATION).is_err());
    }
}

/// Seals `inner` as it is, and claims that it is compressed, as a hostile sealer would.
fn sealed_as_compressed(inner: &[u8], plaintext_bytes: u64) -> Result<Vec<u8>, SealError> {
    let (sealed, mut key) = seal_shard(inner, ORGANISATION).unwrap();
    assert!(!key.zstd, "the test needs content that does not shrink");
    key.zstd = true;
    key.plaintext_bytes = plaintext_bytes;
    open_shard(&sealed, &key, ORGANISATION)
}

#[test]
fn hostile_frames_are_bounded() {
    let frame = |content: &[u8]| zstd::bulk::compress(content, 1).unwrap();
    let one = frame(b"one");
    assert_eq!(sealed_as_compressed(&one, 3), Ok(b"one".to_vec()));
    let mismatch = |result| matches!(result, Err(SealError::Mismatch { .. }));
    let malformed = |result| matches!(result, Err(SealError::Malformed { .. }));
    let bomb = frame(&vec![0; 64 << 20]);
    assert!(bomb.len() < 4 << 10);
    assert!(mismatch(sealed_as_compressed(&bomb, 10)), "more than it says");
    assert!(mismatch(sealed_as_compressed(&one, 4)), "less than it says");
    let two = [frame(b"one"), frame(b"two")].concat();
    assert!(malformed(sealed_as_compressed(&two, 6)), "two frames");
    assert!(
        malformed(sealed_as_compressed(&one[..one.len() - 1], 3)),
        "half a frame"
    );
    assert!(malformed(sealed_as_compressed(b"", 0)), "no frame");
    assert!(matches!(
        sealed_as_compressed(&one, 128 << 20),
        Err(SealError::TooLarge { .. })
    ));
}

#[test]
fn full_shards_fit_and_larger_ones_do_not() {
    let most = noise(MAX_PLAINTEXT_BYTES);
    let (sealed, key) = seal_shard(&most, ORGANISATION).unwrap();
    assert!(!key.zstd);
    // The figure of docs/formats.md.
    assert_eq!((sealed.len(), MAX_SEALED_BYTES), (67_109_944, 67_109_944));
    assert!(open_shard(&sealed, &key, ORGANISATION).unwrap() == most);
    let mut more = most;
    more.push(0);
    assert!(matches!(
        seal_shard(&more, ORGANISATION),
        Err(SealError::TooLarge { .. })
    ));
}

#[test]
fn one_buffer_serves_for_many_shards() {
    let mut room = Vec::with_capacity(MAX_SEALED_BYTES);
    let place = room.as_ptr();
    for plaintext in [noise(5 << 20), noise(100), Vec::new(), noise(3 << 20)] {
        let mut shard = PlainShard::new(plaintext.len(), room).unwrap();
        let mut rest = plaintext.as_slice();
        for piece in shard.pieces_mut() {
            let (now, later) = rest.split_at(piece.len());
            piece.copy_from_slice(now);
            rest = later;
        }
        assert!(rest.is_empty());
        let (sealed, key) = shard.seal(ORGANISATION).unwrap();
        assert_eq!(sealed.as_ptr(), place);
        assert!(open_shard(&sealed, &key, ORGANISATION).unwrap() == plaintext);
        let opened = PlainShard::open(sealed, &key, ORGANISATION).unwrap();
        assert_eq!(opened.bytes(), plaintext.len());
        assert!(opened.pieces().collect::<Vec<_>>().concat() == plaintext);
        room = opened.into_room();
        assert_eq!(room.as_ptr(), place);
    }
    assert!(matches!(
        PlainShard::new(MAX_PLAINTEXT_BYTES + 1, Vec::new()),
        Err(SealError::TooLarge { .. })
    ));
}

#[test]
fn a_beginning_that_shrinks_does_not_let_the_whole_grow() {
    let mut plaintext = vec![b'a'; 1 << 20];
    plaintext.extend(noise(3 << 20));
    let (sealed, key) = seal_shard(&plaintext, ORGANISATION).unwrap();
    assert!(sealed.len() < plaintext.len() + 1000);
    assert!(open_shard(&sealed, &key, ORGANISATION).unwrap() == plaintext);
}

#[test]
fn an_index_is_that_of_its_artifact() {
    let one = crossing("admissions/train", sha256(b"permit"));
    let other = crossing("admissions/validation", sha256(b"permit"));
    let sealed = &one.objects[&one.list.index.digest];
    let open = |key: &DataKey, organisation: &str, artifact: &Digest| open_index(sealed, key, organisation, artifact);
    assert_eq!(open(&one.data_key, ORGANISATION, &one.artifact).unwrap(), one.index);
    let wrong = |result: Result<SealedIndex, SealError>| matches!(result, Err(SealError::WrongKey { .. }));
    assert!(wrong(open(&other.data_key, ORGANISATION, &one.artifact)));
    assert!(wrong(open(&one.data_key, "st-john", &one.artifact)));
    assert!(
        wrong(open(&one.data_key, ORGANISATION, &other.artifact)),
        "replayed for another artifact"
    );
}

#[test]
fn an_index_that_contradicts_itself_is_neither_sealed_nor_opened() {
    let Crossing { index, data_key, .. } = crossing("admissions/train", sha256(b"permit"));
    assert!(seal_index(&index, &data_key).is_ok());
    let broken = |change: &dyn Fn(&mut SealedIndex)| {
        let mut index = index.clone();
        change(&mut index);
        matches!(seal_index(&index, &data_key), Err(SealError::Mismatch { .. }))
    };
    assert!(broken(&|i| i.format.push('2')));
    assert!(broken(&|i| i.manifest.format.push('2')));
    assert!(broken(&|i| i.shards[1] = i.shards[0].clone()));
    assert!(broken(&|i| i.shards.truncate(1)));
    assert!(broken(&|i| i.shards[0].plaintext_bytes += 1));
    assert!(broken(&|i| i.manifest.files[0].bytes = u64::MAX));
    for path in [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        ".",
        "a\\b",
        "train/weights.bin",
    ] {
        assert!(broken(&|i| i.manifest.files[0].path = path.to_owned()), "{path}");
    }
}

#[test]
fn a_packing_list_is_its_signers_and_whole() {
    let sent = crossing("admissions/train", sha256(b"permit"));
    let object = sign_packing_list(&owner(), &sent.list).unwrap();
    assert_eq!(
        object,
        sign_packing_list(&owner(), &sent.list).unwrap(),
        "a retry sends the same object"
    );
    assert!(matches!(
        open_packing_list(&object, &stranger().public()),
        Err(SealError::Signature { .. })
    ));
    let mut twice = sent.list.clone();
    twice.shards[1] = twice.shards[0].clone();
    assert!(sign_packing_list(&owner(), &twice).is_err());
    let mut newer = sent.list.clone();
    newer.format = "tidegate.packing-list.v2".to_owned();
    assert!(sign_packing_list(&owner(), &newer).is_err());
    // Signed by the right key, as something else.
    let permit = sign_permit(&owner(), &permit(), &sent.artifact, "x").unwrap();
    assert!(open_packing_list(&dsse::to_bytes(&permit).unwrap(), &owner().public()).is_err());
}

#[test]
fn a_permit_is_its_owners_and_for_one_artifact() {
    let artifact = sha256(b"a manifest");
    let envelope = sign_permit(&owner(), &permit(), &artifact, "admissions/train").unwrap();
    let opened = open_permit(&envelope, &owner().public()).unwrap();
    assert_eq!((&opened.permit, opened.artifact), (&permit(), artifact));
    assert_eq!(Ok(opened.digest), dsse::payload_digest(&envelope));
    assert!(matches!(
        open_permit(&envelope, &stranger().public()),
        Err(SealError::Signature { .. })
    ));

    let mut unsafe_number = permit();
    unsafe_number.byte_limit = u64::MAX;
    assert!(matches!(
        sign_permit(&owner(), &unsafe_number, &artifact, "x"),
        Err(SealError::NotCanonical { .. })
    ));
}

#[test]
fn signed_statements_that_are_no_permits_do_not_open() {
    let envelope = sign_permit(&owner(), &permit(), &sha256(b"a manifest"), "x").unwrap();
    let statement: serde_json::Value = serde_json::from_slice(&dsse::peek(&envelope).unwrap()).unwrap();
    let reopened = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut statement = statement.clone();
        change(&mut statement);
        let payload = tidegate_types::to_canonical_json(&statement).unwrap();
        open_permit(&dsse::sign(&owner(), IN_TOTO_PAYLOAD, &payload), &owner().public())
    };
    assert!(reopened(&|_| ()).is_ok());
    let other = PERMIT_PREDICATE.replace("permit", "bundle");
    let mismatch = |result| matches!(result, Err(SealError::Mismatch { .. }));
    assert!(mismatch(reopened(&|s| s["predicateType"] = other.clone().into())));
    assert!(mismatch(reopened(
        &|s| s["_type"] = "https://in-toto.io/Statement/v0.1".into()
    )));
    assert!(mismatch(reopened(&|s| s["subject"] = serde_json::json!([]))));
    assert!(mismatch(reopened(&|s| {
        let again = s["subject"][0].clone();
        s["subject"].as_array_mut().unwrap().push(again);
    })));
    assert!(mismatch(reopened(
        &|s| s["subject"][0]["digest"] = serde_json::json!({"sha512": "00"})
    )));
    assert!(mismatch(reopened(&|s| s["subject"][0]["digest"]["sha1"] = "00".into())));
    assert!(
        reopened(&|s| s["predicate"]["more"] = 1.into()).is_err(),
        "an unknown field"
    );
    let spaced = serde_json::to_vec_pretty(&statement).unwrap();
    let spaced = dsse::sign(&owner(), IN_TOTO_PAYLOAD, &spaced);
    assert!(open_permit(&spaced, &owner().public()).is_err(), "not canonical");
}

#[test]
fn a_manifest_has_one_name() {
    let sent = crossing("admissions/train", sha256(b"permit"));
    let manifest = &sent.index.manifest;
    let again = serde_json::from_slice(&serde_json::to_vec_pretty(manifest).unwrap()).unwrap();
    assert_eq!(manifest_digest(manifest), manifest_digest(&again));
    let mut other = manifest.clone();
    other.files[0].bytes += 1;
    assert_ne!(manifest_digest(manifest), manifest_digest(&other));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn shards_round_trip_and_show_every_change(
        seed in any::<u8>(),
        length in 0..70_000_usize,
        shrinks in any::<bool>(),
        organisation in "[a-z \"\\\\é]{1,20}",
        at in any::<prop::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let plaintext = if shrinks { vec![seed; length] } else { noise(length) };
        let (sealed, key) = seal_shard(&plaintext, &organisation).unwrap();
        prop_assert_eq!(key.plaintext_bytes, length as u64);
        prop_assert!(open_shard(&sealed, &key, &organisation).unwrap() == plaintext);
        let at = at.index(sealed.len());
        prop_assert!(open_shard(&sealed[..at], &key, &organisation).is_err());
        let mut altered = sealed.clone();
        altered[at] ^= 1 << bit;
        prop_assert!(open_shard(&altered, &key, &organisation).is_err());
        let (again, other) = seal_shard(&plaintext, &organisation).unwrap();
        prop_assert!(again != sealed && other.key != key.key && other.id != key.id, "never twice under one key");
    }

    #[test]
    fn packing_lists_and_indexes_show_every_change(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
        let sent = crossing("admissions/train", sha256(b"permit"));
        let object = sign_packing_list(&owner(), &sent.list).unwrap();
        let mut altered = object.clone();
        altered[at.index(object.len())] ^= 1 << bit;
        // Only the key id, which nobody believes, may change without harm.
        if let Ok(list) = open_packing_list(&altered, &owner().public()) {
            prop_assert_eq!(&list, &sent.list);
        }
        prop_assert!(open_packing_list(&object[..at.index(object.len())], &owner().public()).is_err());
        let mut altered = sent.objects[&sent.list.index.digest].clone();
        let at = at.index(altered.len());
        altered[at] ^= 1 << bit;
        prop_assert!(open_index(&altered, &sent.data_key, ORGANISATION, &sent.artifact).is_err());
        prop_assert!(open_index(&altered[..at], &sent.data_key, ORGANISATION, &sent.artifact).is_err());
    }
}
