use tidegate_types::{Digest, SiteName, to_canonical_json};

#[test]
fn digests_round_trip_and_refuse_other_spellings() {
    let digest = Digest::from_bytes([0xab; 32]);
    assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
    let hex = digest.to_hex();
    for bad in [
        hex.clone(),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{}", &hex[2..]),
        format!("blake3:{hex}"),
    ] {
        assert!(bad.parse::<Digest>().is_err(), "{bad}");
    }
}

#[test]
fn canonical_json_sorts_keys_and_writes_shortest_numbers() {
    let value = serde_json::json!({"b": 1.0, "a": ["\u{e9}", 1e21], "A": null});
    assert_eq!(
        String::from_utf8(to_canonical_json(&value).unwrap()).unwrap(),
        "{\"A\":null,\"a\":[\"é\",1e+21],\"b\":1}"
    );
}

#[test]
fn names_are_safe_path_components() {
    assert!(SiteName::new("st-mary_2").is_ok());
    for bad in ["", "..", "a/b", "-a", "A", "a b", "é", &"a".repeat(64)] {
        assert!(SiteName::new(bad).is_err(), "{bad}");
    }
}
