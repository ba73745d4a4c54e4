//! Compiles how a static program looks names up.

fn main() {
    println!("cargo::rerun-if-changed=src/names.c");
    cc::Build::new()
        .file("src/names.c")
        .warnings_into_errors(true)
        .link_lib_modifier("+whole-archive")
        .compile("tidegate_names");
}
