//! Generates code from the contracts; no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=migrations");
    println!("cargo:rerun-if-changed=../proto/auth");
    let mut compiler = protox::Compiler::new(["../proto"])?;
    compiler.include_imports(true).include_source_info(true).open_files(["auth/v1/auth.proto"])?;
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    fs::write(descriptors, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        // They hold passwords and tokens: their Debug is written by hand.
        .skip_debug(["auth.v1.RegisterRequest", "auth.v1.LoginRequest", "auth.v1.LoginResponse"])
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
