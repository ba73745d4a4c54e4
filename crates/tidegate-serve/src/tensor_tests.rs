use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<InferRequest, BadRequest> {
    InferRequest::parse(text.as_bytes(), None)
}

fn input(datatype: &str, shape: &str, data: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]}}"#)
}

fn elements(text: &str) -> Elements {
    parse(text).unwrap().inputs.remove(0).elements
}

#[test]
fn nested_and_flat_arrays_mean_the_same_and_null_is_missing() {
    let flat = elements(&input("FP32", "[2,2]", "[1, 2.5, -3, 4]"));
    assert_eq!(flat, elements(&input("FP32", "[2,2]", "[[1, 2.5], [-3, 4]]")));
    assert_eq!(flat, Elements::Numbers(vec![1.0, 2.5, -3.0, 4.0]));
    let Elements::Numbers(numbers) = elements(&input("FP64", "[3]", "[null, null, 1]")) else {
        panic!("numbers")
    };
    assert!(numbers[0].is_nan() && numbers[1].is_nan() && numbers[2] == 1.0);
    let texts = Elements::Texts(vec![None, Some("icu".to_owned()), None]);
    assert_eq!(elements(&input("BYTES", "[3,1]", "[[null], [\"icu\"], [null]]")), texts);
    assert_eq!(
        elements(&input("BYTES", "[2]", "[null, null]")),
        Elements::Texts(vec![None; 2])
    );
}

#[test]
fn what_does_not_fit_is_refused_without_repeating_it() {
    let bad = [
        input("FP32", "[1]", "[\"secret-4711\"]"),
        input("BYTES", "[1]", "[4711]"),
        input("FP32", "[2]", "[4711, \"secret-4711\"]"),
        input("FP32", "[1]", "[true]"),
        input("FP32", "[1]", "\"secret-4711\""),
        input("FP32", "[1]", "[{\"secret-4711\": 4711}]"),
        input("FP32", "[2]", "[4711]"),
        input("FP32", "[-1]", "[4711]"),
        input("FP16", "[1]", "[4711]"),
        input("FP32", "[4294967296, 4294967296]", "[4711]"),
        input("FP32", "[1]", "[4711").replace("]}]}", ""),
        "{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"shape\":[1]}]}".to_owned(),
        "[]".to_owned(),
        "secret-4711".to_owned(),
        format!("{{\"id\":\"{}\",\"inputs\":[]}}", "4711".repeat(100)),
        input("FP32", "[1]", &format!("{}4711{}", "[".repeat(200), "]".repeat(200))),
        input(
            "FP32",
            "[1]",
            "[1], \"parameters\": {\"shared_memory_region\": \"secret-4711\"}",
        ),
    ];
    for text in bad {
        let error = parse(&text).unwrap_err().to_string();
        assert!(!error.contains("4711") && error.len() < 400, "{text}: {error}");
    }
}

#[test]
fn a_short_text_cannot_unfold_to_much_memory() {
    let many = format!("[{}0]", "0,".repeat(MAX_ELEMENTS));
    assert!(parse(&input("FP32", &format!("[{}]", MAX_ELEMENTS + 1), &many)).is_err());
    let nulls = many.replace('0', "null");
    assert!(parse(&input("BYTES", &format!("[{}]", MAX_ELEMENTS + 1), &nulls)).is_err());
}

#[test]
fn binary_tensors_follow_the_json_in_order() {
    let head = concat!(
        r#"{"inputs":[{"name":"a","datatype":"INT64","shape":[1],"parameters":{"binary_data_size":8}},"#,
        r#"{"name":"b","datatype":"FP32","shape":[1],"data":[7]},"#,
        r#"{"name":"c","datatype":"BYTES","shape":[2],"parameters":{"binary_data_size":11}}],"#,
        r#""outputs":[{"name":"p","parameters":{"binary_data":true}}],"parameters":{"binary_data_output":true,"other":[1]}}"#
    );
    let body = [head.as_bytes(), &5_i64.to_le_bytes(), &[3, 0, 0, 0], b"icu", &[0; 4]].concat();
    let request = InferRequest::parse(&body, Some(head.len())).unwrap();
    let read: Vec<_> = request.inputs.into_iter().map(|input| input.elements).collect();
    assert_eq!(
        read,
        [
            Elements::Numbers(vec![5.0]),
            Elements::Numbers(vec![7.0]),
            Elements::Texts(vec![Some("icu".to_owned()), Some(String::new())]),
        ]
    );
    assert!(request.binary && request.outputs[0].binary);

    let wrong = |body: &[u8], header: usize| InferRequest::parse(body, Some(header)).unwrap_err();
    wrong(&body, body.len() + 1);
    wrong(&body[..body.len() - 1], head.len());
    wrong(&[&body[..], b"x"].concat(), head.len());
    wrong(&body, head.len() - 1);
    let huge = head.replace(":11}", ":18446744073709551615}");
    wrong(&[huge.as_bytes(), &body[head.len()..]].concat(), huge.len());
    let mut not_utf8 = body.clone();
    not_utf8[head.len() + 12] = 0xff;
    wrong(&not_utf8, head.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn numbers_are_read_as_they_were_sent(numbers in proptest::collection::vec(any::<f32>(), 1..50), columns in 1_usize..5) {
        let rows = numbers.len() / columns;
        let numbers = &numbers[..rows * columns];
        let shape = format!("[{rows},{columns}]");
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let head = format!(
            r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":{shape},"parameters":{{"binary_data_size":{}}}}}]}}"#,
            bytes.len()
        );
        let request = InferRequest::parse(&[head.as_bytes(), &bytes].concat(), Some(head.len())).unwrap();
        let Elements::Numbers(read) = &request.inputs[0].elements else { panic!("numbers") };
        for (read, sent) in read.iter().zip(numbers) {
            prop_assert!((*read as f32).to_bits() == sent.to_bits() || (read.is_nan() && sent.is_nan()));
        }
        // In JSON there is no infinity, and null stands for NaN.
        if numbers.iter().all(|number| !number.is_infinite()) {
            let text = parse(&input("FP32", &shape, &serde_json::to_string(&numbers).unwrap())).unwrap();
            let Elements::Numbers(written) = &text.inputs[0].elements else { panic!("numbers") };
            for (written, sent) in written.iter().zip(numbers) {
                prop_assert!(*written as f32 == *sent || (written.is_nan() && sent.is_nan()));
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200), header in proptest::option::of(0_usize..250)) {
        let _ = InferRequest::parse(&body, header);
    }
}
