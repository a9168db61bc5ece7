//! Generates code from the contracts; no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=../proto/greeter");
    let mut compiler = protox::Compiler::new(["../proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(["greeter/v1/greeter.proto", "greeter/v2/greeter.proto"])?;
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
