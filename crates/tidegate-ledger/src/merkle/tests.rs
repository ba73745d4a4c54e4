//! The fast algorithms against the definitions of RFC 6962.

use proptest::prelude::*;

use super::*;

/// The definitions of RFC 6962, word by word and slow.
mod naive {
    use super::*;

    pub(super) fn root(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => empty_root(),
            [one] => *one,
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len()));
                node_hash(&root(left), &root(right))
            }
        }
    }

    fn split(n: usize) -> usize {
        let mut k = 1;
        while k * 2 < n {
            k *= 2;
        }
        k
    }

    pub(super) fn path(m: usize, leaves: &[Digest]) -> Vec<Digest> {
        if leaves.len() <= 1 {
            return Vec::new();
        }
        let k = split(leaves.len());
        let (left, right) = leaves.split_at(k);
        let (mut path, other) = if m < k {
            (path(m, left), right)
        } else {
            (path(m - k, right), left)
        };
        path.push(root(other));
        path
    }

    pub(super) fn subproof(m: usize, leaves: &[Digest], whole: bool) -> Vec<Digest> {
        if m == leaves.len() {
            return if whole { Vec::new() } else { vec![root(leaves)] };
        }
        let k = split(leaves.len());
        let (left, right) = leaves.split_at(k);
        let (mut proof, other) = if m <= k {
            (subproof(m, left, whole), right)
        } else {
            (subproof(m - k, right, false), left)
        };
        proof.push(root(other));
        proof
    }
}

fn leaves(n: usize) -> Vec<Digest> {
    (0..n).map(|i| leaf_hash(format!("leaf {i}").as_bytes())).collect()
}

#[test]
fn known_roots_of_rfc_6962_test_data() {
    let hex = |d: Digest| d.to_hex();
    assert_eq!(
        hex(empty_root()),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    assert_eq!(
        hex(leaf_hash(b"")),
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    );
    // The eight inputs that Certificate Transparency implementations share.
    let inputs: [&[u8]; 8] = [
        b"",
        b"\x00",
        b"\x10",
        b"\x20\x21",
        b"\x30\x31",
        b"\x40\x41\x42\x43",
        b"\x50\x51\x52\x53\x54\x55\x56\x57",
        b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
    ];
    let tree: Tree = inputs.iter().map(|leaf| leaf_hash(leaf)).collect();
    assert_eq!(
        hex(tree.root(8).unwrap()),
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    );
}

#[test]
fn every_small_log_agrees_with_the_definition() {
    let all = leaves(40);
    let tree: Tree = all.iter().copied().collect();
    let mut range = CompactRange::new();
    for new in 0..=all.len() {
        let root = naive::root(&all[..new]);
        assert_eq!(
            (tree.root(new as u64).unwrap(), range.root(), range.size()),
            (root, root, new as u64)
        );
        for index in 0..new {
            let proof = tree.inclusion_proof(index as u64, new as u64).unwrap();
            assert_eq!(proof, naive::path(index, &all[..new]));
            verify_inclusion(&all[index], index as u64, new as u64, &proof, &root).unwrap();
        }
        for old in 1..=new {
            let proof = tree.consistency_proof(old as u64, new as u64).unwrap();
            assert_eq!(proof, naive::subproof(old, &all[..new], true));
            verify_consistency(old as u64, &naive::root(&all[..old]), new as u64, &root, &proof).unwrap();
        }
        if let Some(leaf) = all.get(new) {
            range.append(*leaf);
        }
    }
}

#[test]
fn asking_for_what_is_not_there_is_an_error() {
    let tree: Tree = leaves(3).into_iter().collect();
    assert!(tree.root(4).is_err());
    assert!(tree.inclusion_proof(2, 2).is_err() && tree.inclusion_proof(0, 4).is_err());
    assert!(tree.consistency_proof(3, 2).is_err() && tree.consistency_proof(1, 4).is_err());
    assert!(CompactRange::from_peaks(5, leaves(3)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_range_goes_on_after_a_restart(before in 0_usize..300, after in 0_usize..300) {
        let all = leaves(before + after);
        let mut range = CompactRange::new();
        all[..before].iter().for_each(|leaf| range.append(*leaf));
        let mut again = CompactRange::from_peaks(range.size(), range.peaks().to_vec()).unwrap();
        all[before..].iter().for_each(|leaf| again.append(*leaf));
        prop_assert_eq!(again.root(), naive::root(&all));
    }

    #[test]
    fn an_altered_proof_proves_nothing(size in 2_u64..300, a in any::<u64>(), at in any::<u64>(), bit in 0_u8..8) {
        let all = leaves(usize::try_from(size).unwrap());
        let tree: Tree = all.iter().copied().collect();
        let (index, root) = (a % size, tree.root(size).unwrap());
        let leaf = all[usize::try_from(index).unwrap()];
        let flip = |proof: &[Digest]| {
            let mut proof = proof.to_vec();
            let at = usize::try_from(at % proof.len() as u64).unwrap();
            let mut bytes = *proof[at].as_bytes();
            bytes[usize::from(bit)] ^= 1 << bit;
            proof[at] = Digest::from_bytes(bytes);
            proof
        };
        let proof = tree.inclusion_proof(index, size).unwrap();
        prop_assert!(verify_inclusion(&leaf, index, size, &flip(&proof), &root).is_err());
        prop_assert!(verify_inclusion(&leaf, index, size, &proof[1..], &root).is_err());
        prop_assert!(verify_inclusion(&leaf, (index + 1) % size, size, &proof, &root).is_err());
        prop_assert!(verify_inclusion(&root, index, size, &proof, &root).is_err());

        let old = 1 + a % (size - 1);
        let old_root = tree.root(old).unwrap();
        let proof = tree.consistency_proof(old, size).unwrap();
        verify_consistency(old, &old_root, size, &root, &proof).unwrap();
        prop_assert!(verify_consistency(old, &old_root, size, &root, &flip(&proof)).is_err());
        prop_assert!(verify_consistency(old, &old_root, size, &root, &proof[1..]).is_err());
        prop_assert!(verify_consistency(old, &root, size, &root, &proof).is_err());
        prop_assert!(verify_consistency(old, &old_root, size, &old_root, &proof).is_err());
    }
}
