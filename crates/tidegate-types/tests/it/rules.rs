use tidegate_types::files::rules::{
    CpuRequest, GateCondition, environment_name_fault, read_accelerators, subgroup_column,
};
use tidegate_types::glob;

#[test]
fn processors() {
    let exactly: CpuRequest = "2".parse().unwrap();
    let more: CpuRequest = "16+".parse().unwrap();
    assert_eq!(
        (exactly.count, exactly.at_least, more.count, more.at_least),
        (2, false, 16, true)
    );
    for bad in ["", "+", "0", "-1", "+2", "2++", "1.5", "two", "99999"] {
        assert!(bad.parse::<CpuRequest>().is_err(), "{bad}");
    }
}

#[test]
fn gates() {
    let gate: GateCondition = ">= 0.75".parse().unwrap();
    assert_eq!((gate.at_least, gate.bound), (true, 0.75));
    assert!(!"<=0.6".parse::<GateCondition>().unwrap().at_least);
    for bad in ["0.75", "> 0.75", "= 0.7", ">= x", ">= NaN", "<= inf", ">= -1", ">="] {
        assert!(bad.parse::<GateCondition>().is_err(), "{bad}");
    }
}

#[test]
fn subgroups_read_one_column() {
    for (text, column) in [
        ("sex", "sex"),
        (" Sex ", "sex"),
        ("\"Sex\"", "Sex"),
        ("\"a, (b)\"", "a, (b)"),
        ("age_band(age, 10)", "age"),
        ("top_code( \"Age, years\" , 90 )", "Age, years"),
        ("year(admitted)", "admitted"),
        ("zip3(zip)", "zip"),
    ] {
        assert_eq!(subgroup_column(text).as_deref(), Some(column), "{text}");
    }
    for text in [
        "",
        "\"\"",
        "*",
        "1",
        "a.sex",
        "sex || ssn",
        "\"sex\" || \"ssn\"",
        "upper(name)",
        "\"zip3\"(ssn)",
        "zip3(zip) || name",
        "zip3(zip || name)",
        "zip3(zip, name)",
        "zip3(zip3(zip))",
        "age_band(age, ssn, 10)",
        "age_band(10)",
        "sex -- name",
        "sex AS x",
        "(sex)",
        "CASE WHEN name = 'A' THEN 1 END",
    ] {
        assert_eq!(subgroup_column(text), None, "{text}");
    }
}

#[test]
fn accelerators() {
    let read = |text| read_accelerators(text).unwrap();
    assert_eq!(read("T4"), ("t4".to_owned(), 1));
    assert_eq!(read("A100-80GB:8"), ("a100-80gb".to_owned(), 8));
    for bad in ["", ":", "T4:", ":1", "T4:0", "T4:65", "T4:+1", "T4:1:1", "T 4", "T4: 1"] {
        assert!(read_accelerators(bad).is_err(), "{bad}");
    }
}

#[test]
fn globs() {
    for (pattern, name, fits) in [
        ("*.csv", "a.csv", true),
        ("*.csv", ".csv", true),
        ("a*b*c", "aXXbYYc", true),
        ("a?c", "abc", true),
        ("a?c", "ac", false),
        ("a*", "ba", false),
        ("**", "anything", true),
        ("é?", "éé", true),
    ] {
        assert_eq!(glob::matches(pattern, name), fits, "{pattern} {name}");
    }
}

#[test]
fn a_job_cannot_take_the_names_that_the_worker_sets() {
    assert_eq!(environment_name_fault("OMP_NUM_THREADS"), None);
    for bad in [
        "",
        "1A",
        "A-B",
        "A=B",
        "TIDEGATE_TARGET",
        "LD_PRELOAD",
        "PATH",
        "SM_MODEL_DIR",
    ] {
        assert!(environment_name_fault(bad).is_some(), "{bad}");
    }
}
