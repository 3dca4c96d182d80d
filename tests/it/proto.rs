//! The protobuf code in the tree is what `proto/` says.

/// Needs no protoc. When it fails, run it once more with `HOLDFAST_UPDATE_GENERATED=1`, and look at the difference.
#[test]
fn generated_protobuf_code_is_up_to_date() {
    let root = crate::workspace();
    let checked_in = root.join("crates/serve/src/generated/holdfast.v1.rs");
    let files = ["holdfast/v1/flight.proto", "holdfast/v1/handle.proto"];
    let out = tempfile::tempdir().unwrap();

    let descriptors = protox::compile(files, [root.join("proto")]).unwrap();
    prost_build::Config::new().enable_type_names().out_dir(out.path()).compile_fds(descriptors).unwrap();
    let generated = std::fs::read_to_string(out.path().join("holdfast.v1.rs")).unwrap();

    if std::env::var_os("HOLDFAST_UPDATE_GENERATED").is_some() {
        std::fs::write(&checked_in, &generated).unwrap();
    }
    let found = std::fs::read_to_string(&checked_in).unwrap().replace("\r\n", "\n");
    assert_eq!(found, generated, "{} is stale", checked_in.display());
}
