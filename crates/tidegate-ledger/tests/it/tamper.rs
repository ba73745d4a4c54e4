//! What an auditor must see, and what is said about it.

use proptest::prelude::*;
use tidegate_ledger::tiles::CHECKPOINT_PATH;
use tidegate_ledger::{
    Checkpoint, LeafProof, LedgerError, SignedCheckpoint, TrustedKeys, verify_log, verify_tiles, witness,
};

use crate::fixture::{KEEPER, Log, ORIGIN, Signer, event};

fn audit(log: &Log, since: Option<&str>) -> Result<tidegate_ledger::Report, LedgerError> {
    verify_tiles(&|path| log.read(path), &log.keys(), since)
}

fn audit_leaves(log: &Log, leaves: &[Vec<u8>]) -> Result<tidegate_ledger::Report, LedgerError> {
    verify_log(leaves.iter().cloned().map(Ok), &log.checkpoint(), &log.keys(), None)
}

#[test]
fn a_whole_log_is_reported_with_what_is_not_proven() {
    let mut log = Log::of(300);
    let old = log.checkpoint();
    log.grow(700);
    let report = audit(&log, Some(&old)).unwrap();
    assert_eq!((report.size, report.continues, report.not_covered), (700, Some(300), 0));
    assert_eq!(report.signed_by, [ORIGIN, KEEPER]);
    assert_eq!(report.not_proven, Vec::<String>::new());
    assert_eq!(report.root, log.tree.root(700).unwrap());

    let single = TrustedKeys::single(log.log.key.clone());
    let report = verify_tiles(&|path| log.read(path), &single, None).unwrap();
    insta::assert_snapshot!(report.not_proven.join("\n"));
}

#[test]
fn leaves_behind_the_checkpoint_are_counted_and_checked() {
    let log = Log::of(5);
    let mut leaves = log.leaves.clone();
    leaves.push(event(5));
    assert_eq!(audit_leaves(&log, &leaves).unwrap().not_covered, 1);
    leaves.push(b"{".to_vec());
    assert!(matches!(
        audit_leaves(&log, &leaves),
        Err(LedgerError::BadLeaf { index: 6, .. })
    ));
}

#[test]
fn the_empty_log_can_be_signed_and_continued() {
    let mut log = Log::of(0);
    assert_eq!(audit(&log, None).unwrap().size, 0);
    let old = log.checkpoint();
    log.grow(1);
    assert_eq!(audit(&log, Some(&old)).unwrap().continues, Some(0));
}

/// Every message that an auditor may read, in one place.
#[test]
fn each_kind_of_tampering_has_its_own_message() {
    let mut log = Log::of(300);
    let old = log.checkpoint();
    log.grow(600);
    let mut said = Vec::new();
    let mut say = |what: &str, result: Result<tidegate_ledger::Report, LedgerError>| {
        said.push(format!("{what}:\n    {}", result.unwrap_err()));
    };

    let leaves = log.leaves.clone();
    let altered = |index: usize, leaf: Vec<u8>| {
        let mut leaves = leaves.clone();
        leaves[index] = leaf;
        leaves
    };
    say(
        "a leaf replaced by another event",
        audit_leaves(&log, &altered(7, event(9999))),
    );
    say(
        "a leaf that is not JSON",
        audit_leaves(&log, &altered(7, b"secret\xff".to_vec())),
    );
    say(
        "a leaf that is no object",
        audit_leaves(&log, &altered(7, b"\"secret\"".to_vec())),
    );
    say("a leaf with spaces", audit_leaves(&log, &altered(7, b"{ }".to_vec())));
    say("the last leaf cut off", audit_leaves(&log, &leaves[..599]));
    say(
        "two leaves exchanged",
        audit_leaves(&log, &[&leaves[1..2], &leaves[..1], &leaves[2..]].concat()),
    );

    let bundle = "tile/entries/001";
    let tampered = |path: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let before = log.files.borrow().clone();
        change(log.files.borrow_mut().get_mut(path).unwrap());
        let result = audit(&log, None);
        *log.files.borrow_mut() = before;
        result
    };
    let digit = |bytes: &mut Vec<u8>| {
        // A digit of the last leaf's attempt number becomes another.
        let at = bytes.iter().rposition(u8::is_ascii_digit).unwrap();
        bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
    };
    say("one bit of a bundle", tampered(bundle, &digit));
    say(
        "a bundle cut in a leaf",
        tampered(bundle, &|bytes| bytes.truncate(bytes.len() - 3)),
    );
    say(
        "one bit of a hash tile",
        tampered("tile/0/001", &|bytes| bytes[64] ^= 1),
    );
    say(
        "one bit of an upper tile",
        tampered("tile/1/000.p/2", &|bytes| bytes[32] ^= 1),
    );
    say(
        "a short hash tile",
        tampered("tile/0/001", &|bytes| bytes.truncate(8190)),
    );
    say(
        "a checkpoint of another size",
        tampered(CHECKPOINT_PATH, &|bytes| {
            *bytes = String::from_utf8(bytes.clone())
                .unwrap()
                .replacen("\n600\n", "\n599\n", 1)
                .into_bytes();
        }),
    );
    let before = log.files.borrow().clone();
    log.files.borrow_mut().remove("tile/entries/002.p/88");
    say("a bundle removed", audit(&log, None));
    *log.files.borrow_mut() = before.clone();
    log.files.borrow_mut().remove("tile/0/002.p/88");
    say("a hash tile removed", audit(&log, None));
    *log.files.borrow_mut() = before.clone();
    log.files
        .borrow_mut()
        .insert(CHECKPOINT_PATH.to_owned(), old.clone().into_bytes());
    let newer = String::from_utf8(before[CHECKPOINT_PATH].clone()).unwrap();
    say("the log rolled back", audit(&log, Some(&newer)));
    *log.files.borrow_mut() = before;

    let mut fork = Log::new();
    (0..600).for_each(|number| fork.append(event(if number == 5 { 5000 } else { number })));
    fork.publish();
    say("a fork signed by both keys", audit(&fork, Some(&old)));
    let stranger = TrustedKeys::single(Signer::new(ORIGIN, 9).key);
    say(
        "the wrong log key",
        verify_tiles(&|path| log.read(path), &stranger, None),
    );
    let elsewhere = TrustedKeys::single(Signer::new("tidegate.example/other", 1).key);
    say("another log", verify_tiles(&|path| log.read(path), &elsewhere, None));
    let mut two = log.keys();
    two.cosigners.push(Signer::new("st-mary/second", 3).key);
    say(
        "a cosigner who has not signed",
        verify_tiles(&|path| log.read(path), &two, None),
    );

    let said = said.join("\n");
    assert!(!said.contains("secret"));
    insta::assert_snapshot!(said);
}

#[test]
fn a_keeper_cosigns_only_what_continues_its_last_checkpoint() {
    let log = Log::of(300);
    let head = |log: &Log, size: u64| Checkpoint {
        origin: ORIGIN.to_owned(),
        size,
        root: log.tree.root(size).unwrap(),
    };
    let cosign = |last: &Checkpoint, new: &Checkpoint, tree: &tidegate_ledger::Tree, by: &Signer| {
        let signed = SignedCheckpoint::sign(new.clone(), &by.key, &|bytes| by.sign(bytes))
            .unwrap()
            .to_string();
        let proof = tree.consistency_proof(last.size.min(new.size), new.size).unwrap();
        witness(Some(last), &signed, &proof, &log.log.key, &log.keeper.key, &|bytes| {
            log.keeper.sign(bytes)
        })
    };
    cosign(&head(&log, 100), &head(&log, 300), &log.tree, &log.log).unwrap();
    let back = cosign(&head(&log, 300), &head(&log, 100), &log.tree, &log.log);
    assert!(matches!(back, Err(LedgerError::WentBack { old: 300, new: 100 })));
    let mut fork = Log::new();
    (0..300).for_each(|number| fork.append(event(number + 1)));
    let forked = cosign(&head(&log, 100), &head(&fork, 300), &fork.tree, &log.log);
    assert!(matches!(forked, Err(LedgerError::NotConsistent { old: 100, new: 300 })));
    let impostor = cosign(&head(&log, 100), &head(&log, 300), &log.tree, &Signer::new(ORIGIN, 9));
    assert!(matches!(impostor, Err(LedgerError::NotSigned { .. })));
}

#[test]
fn a_proof_file_holds_for_its_leaf_alone() {
    let log = Log::of(600);
    let text = log.proof(421).to_string();
    let proof: LeafProof = text.parse().unwrap();
    proof.verify(&event(421), &log.keys()).unwrap();
    assert!(matches!(
        proof.verify(&event(420), &log.keys()),
        Err(LedgerError::NotIncluded { index: 421, size: 600 })
    ));
    let other = TrustedKeys::single(Signer::new(ORIGIN, 9).key);
    assert!(matches!(
        proof.verify(&event(421), &other),
        Err(LedgerError::NotSigned { .. })
    ));

    let with_extra = text.replacen("index", "extra aGVsbG8=\nindex", 1);
    assert_eq!(
        with_extra.parse::<LeafProof>().unwrap(),
        proof,
        "extra data is read over"
    );
    for bad in [
        text.replacen("@v1", "@v2", 1),
        text.replacen("index 421", "index 0421", 1),
        text.replacen("index 421\n", "", 1),
        text.replacen("index 421\n", "index 421\nAAAA\n", 1),
        text.replacen("index", "extra !\nindex", 1),
        text.replacen("\n\n", "\n", 2),
    ] {
        assert!(bad.parse::<LeafProof>().is_err(), "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However a log grew, its folder holds what a folder rendered at once holds, and audits.
    #[test]
    fn folders_grow_to_the_same_files(steps in proptest::collection::vec(0_u64..400, 1..4)) {
        let mut grown = Log::new();
        let mut size = 0;
        for step in steps {
            size += step;
            grown.grow(size);
        }
        let at_once = Log::of(size);
        for (path, bytes) in at_once.files.borrow().iter() {
            prop_assert!(grown.files.borrow().get(path) == Some(bytes), "{} differs", path);
        }
        prop_assert_eq!(audit(&grown, None).unwrap().size, size);
    }

    /// No flipped bit anywhere in the published files goes unseen.
    #[test]
    fn every_flipped_bit_is_seen(file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let log = Log::of(260);
        let path = file.get(&log.files.borrow().keys().cloned().collect::<Vec<_>>()).clone();
        if let Some(bytes) = log.files.borrow_mut().get_mut(&path) {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        prop_assert!(audit(&log, None).is_err(), "a bit of {} flipped unseen", path);
    }
}
